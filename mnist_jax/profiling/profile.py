"""Profiles training: time per epoch by phase, time per step by scope, a trace."""

import collections
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
from jax.profiler import ProfileData

from mnist_jax.data.batches import epoch_indices
from mnist_jax.models.flops import training_flops
from mnist_jax.profiling.hardware import matmul_peaks
from mnist_jax.profiling.memory import peak_megabytes
from mnist_jax.reporting.tables import markdown_table
from mnist_jax.training.prepare import Experiment

EPOCHS = 3  # timed, after one to warm up
TRACED_STEPS = 100  # more would fill the trace: an LSTM step has 1,000 operations
SHOWN = 10  # scopes in the printed table
# Operations that only contain others, whose time would count twice.
_SKIPPED = {"while", "call", "conditional", "tuple", "get-tuple-element", "parameter"}
# Components of a scope's path that JAX and Flax add.
_NOISE = re.compile(r"jit\(.*\)|shard_map|while|body|closed_call|custom_vjp_call|cond")


class Profile(NamedTuple):
    """The result of `profile`."""

    seconds: dict[str, float]  # per epoch, by phase
    scopes: pd.DataFrame  # per step: scope, microseconds, share; largest first
    gflops: float  # in training steps, by `training_flops`
    peak_gflops: float
    peak_megabytes: float
    device_megabytes: float | None  # of this process's first; None if not reported


def read_scopes(hlo: str) -> dict[str, str]:
    """Maps the operation names of a compiled program (HLO text) to their scopes.

    >>> read_scopes('%dot.1 = f32[2]{0} dot(%a, %b), '
    ...             'metadata={op_name="jit(f)/while/body/jvp(MLP)/Dense_0/dot"}')
    {'dot.1': 'jvp(MLP)/Dense_0/dot'}
    """
    scopes, roots, unnamed = {}, {}, {}
    computation = ""
    for line in hlo.splitlines():
        if match := re.match(r"\s*%?([\w.-]+) \(.*\{$", line):
            computation = match[1]
        pattern = r"\s*(ROOT )?%?([\w.-]+) = (?:\([^()]*\)|\S+) ([\w-]+)\("
        match = re.match(pattern, line)
        if not match or match[3] in _SKIPPED:
            continue
        name = re.search(r'op_name="([^"]*)"', line)
        called = re.search(r"calls=%?([\w.-]+)", line)
        if name:
            path = [part for part in name[1].split("/") if not _NOISE.fullmatch(part)]
            scopes[match[2]] = "/".join(path) or match[3]
            if match[1]:
                roots[computation] = scopes[match[2]]
        elif called:
            unnamed[match[2]] = called[1]
        else:
            scopes[match[2]] = match[3]
    # A fusion without metadata takes the scope of its root operation.
    for fusion, computation in unnamed.items():
        scopes[fusion] = roots.get(computation, "fusion")
    return scopes


def _traces(folder: Path, pattern: str) -> list[Path]:
    """Returns the files of a folder's traces, the newest last."""
    return sorted(folder.rglob(pattern), key=lambda path: path.stat().st_mtime)


def sum_by_scope(folder: Path, scopes: Mapping[str, str], steps: int) -> pd.DataFrame:
    """Returns the time of a trace by scope, largest first.

    In microseconds per step, summed over the devices.
    """
    [*_, file] = _traces(folder, "*.xplane.pb")
    nanoseconds: collections.Counter[str] = collections.Counter()
    for plane in ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in scopes:
                    nanoseconds[scopes[event.name]] += event.duration_ns
    total = sum(nanoseconds.values()) or 1
    rows = [(s, t / 1e3 / steps, t / total) for s, t in nanoseconds.most_common()]
    return pd.DataFrame(rows, columns=["scope", "us per step", "share"])


def profile(experiment: Experiment, folder: Path) -> Profile:
    """Times the phases of an epoch, and traces some further training steps.

    Trains new parameters; an earlier run of `experiment` is not affected.

    Args:
        experiment: as returned by `prepare` for one seed.
        folder: where to write the trace; created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, programs = experiment.config, experiment.programs
    size = len(experiment.dataset.train.labels)
    states, run_keys = programs.init_run([config.seed])
    names = ("input", "training steps", "evaluation", "host")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for epoch in range(EPOCHS + 1):
        ticks = [time.perf_counter()]
        order = epoch_indices(config.seed, epoch, size, config.batch_size)
        keys = programs.epoch_keys(run_keys, epoch)
        indices = jax.block_until_ready(programs.shard(order[None]))
        ticks.append(time.perf_counter())
        states, metrics = jax.block_until_ready(
            programs.run_steps(states, experiment.train, indices, keys)
        )
        ticks.append(time.perf_counter())
        if experiment.validation is not None:
            jax.block_until_ready(
                programs.evaluate(
                    states.variables, experiment.held_out, experiment.validation
                )
            )
        ticks.append(time.perf_counter())
        jax.device_get(metrics)
        ticks.append(time.perf_counter())
        if epoch:  # the first epoch is a warm-up
            for name, value in zip(names, np.diff(ticks), strict=True):
                seconds[name].append(float(value))
    steps = min(TRACED_STEPS, len(order))
    jax.profiler.start_trace(folder)
    jax.block_until_ready(
        programs.run_steps(states, experiment.train, indices, keys, 0, steps)
    )
    jax.profiler.stop_trace()
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    scopes = read_scopes(programs.train.as_text() or "")
    flops = training_flops(config, experiment.dataset.shapes)
    memory: dict[str, Any] = programs.mesh.local_devices[0].memory_stats() or {}
    device_bytes = memory.get("peak_bytes_in_use")
    return Profile(
        medians,
        sum_by_scope(folder, scopes, steps),
        flops * size / medians["training steps"] / 1e9,
        max(matmul_peaks().values()),
        peak_megabytes(),
        None if device_bytes is None else device_bytes / 1e6,
    )


def format_profile(found: Profile, folder: Path) -> str:
    """Formats a profile as two Markdown tables and a summary."""
    total = sum(found.seconds.values())
    times = pd.DataFrame(
        {
            "where the time goes": name,
            "s per epoch": f"{value:.4f}",
            "share": f"{value / total:.1%}",
        }
        for name, value in found.seconds.items()
    )
    operations = pd.DataFrame(
        {
            "most expensive operations, by scope": row.scope,
            "us per step, all devices": f"{row._2:,.1f}",
            "share": f"{row.share:.1%}",
        }
        for row in found.scopes.head(SHOWN).itertuples()
    )
    device = ""
    if found.device_megabytes is not None:
        device = f", device {found.device_megabytes:,.0f} MB"
    share = found.gflops / found.peak_gflops
    above = (
        " (above 100%: Winograd's convolution multiplies less than is counted, "
        "bfloat16 is faster, or other programs slowed the measurement)"
    )
    [*_, trace] = [folder, *_traces(folder, "*.trace.json.gz")]
    return (
        f"{markdown_table(times)}\n\n{markdown_table(operations)}\n\n"
        f"training steps: {found.gflops:,.1f} GFLOP/s, "
        f"{share:.1%} of the {found.peak_gflops:,.0f} GFLOP/s measured for matrix "
        f"products in float32{above if share > 1 else ''}\n"
        f"peak memory: process {found.peak_megabytes:,.0f} MB{device}\n"
        f"trace: {trace} (open with https://ui.perfetto.dev; XProf takes {folder})"
    )
