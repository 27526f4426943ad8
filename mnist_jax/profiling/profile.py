"""Profiles training: time per epoch by phase, time per step by scope, a trace."""

import collections
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def sum_by_scope(file: Path, scopes: Mapping[str, str], steps: int) -> dict[str, float]:
    """Returns the time of a trace by scope, largest first.

    In microseconds per step, summed over the devices.
    """
    nanoseconds: collections.Counter[str] = collections.Counter()
    for plane in ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in scopes:
                    nanoseconds[scopes[event.name]] += event.duration_ns
    return {scope: ns / 1e3 / steps for scope, ns in nanoseconds.most_common()}


def time_phases(experiment: Experiment) -> dict[str, float]:
    """Returns the median seconds per epoch of each phase."""
    config, programs = experiment.config, experiment.programs
    size = len(experiment.dataset.train.labels)
    states, run_keys = programs.init_run([config.seed])
    names = ("input", "training steps", "evaluation", "host")
    seconds = []
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
            evaluated = programs.evaluate(
                states.variables, experiment.held_out, experiment.validation
            )
            jax.block_until_ready(evaluated)
        ticks.append(time.perf_counter())
        jax.device_get(metrics)
        ticks.append(time.perf_counter())
        seconds.append(np.diff(ticks))
    medians = np.median(seconds[1:], axis=0).tolist()  # the first epoch is a warm-up
    return dict(zip(names, medians, strict=True))


def trace_steps(experiment: Experiment, folder: Path) -> dict[str, float]:
    """Writes a trace of some training steps and returns its `sum_by_scope`."""
    config, programs = experiment.config, experiment.programs
    states, run_keys = programs.init_run([config.seed])
    size = len(experiment.dataset.train.labels)
    order = epoch_indices(config.seed, 0, size, config.batch_size)
    indices, keys = programs.shard(order[None]), programs.epoch_keys(run_keys, 0)
    steps = min(TRACED_STEPS, len(order))
    folder.mkdir(parents=True, exist_ok=True)
    jax.block_until_ready((states, indices, keys))
    with jax.profiler.trace(folder):
        jax.block_until_ready(
            programs.run_steps(states, experiment.train, indices, keys, 0, steps)
        )
    scopes = read_scopes(programs.train.as_text() or "")
    return sum_by_scope(_newest(folder, "*.xplane.pb"), scopes, steps)


def _newest(folder: Path, pattern: str) -> Path:
    return max(folder.rglob(pattern), key=lambda path: path.stat().st_mtime)


def _share_table(
    columns: tuple[str, str], values: Mapping[str, float], form: str
) -> str:
    """Formats the largest values with their shares of the sum of all."""
    total = sum(values.values())
    rows = [
        (name, format(value, form), f"{value / total:.1%}")
        for name, value in [*values.items()][:SHOWN]
    ]
    return markdown_table(pd.DataFrame(rows, columns=[*columns, "share"]))


def profile(experiment: Experiment, folder: Path) -> str:
    """Times the phases of an epoch, and traces some further training steps.

    Trains new parameters; an earlier run of `experiment` is not affected.

    Args:
        experiment: as returned by `prepare` for one seed.
        folder: where to write the trace; created if missing.

    Returns:
        Two Markdown tables and a summary.
    """
    seconds, scopes = time_phases(experiment), trace_steps(experiment, folder)
    dataset = experiment.dataset
    flops = training_flops(experiment.config, dataset.shapes)
    gflops = flops * len(dataset.train.labels) / seconds["training steps"] / 1e9
    peak = max(matmul_peaks().values())
    memory: dict[str, Any] = {}
    memory |= experiment.programs.mesh.local_devices[0].memory_stats() or {}
    device = ""
    if "peak_bytes_in_use" in memory:
        device = f", device {memory['peak_bytes_in_use'] / 1e6:,.0f} MB"
    above = (
        " (above 100%: Winograd's convolution multiplies less than is counted, "
        "bfloat16 is faster, or other programs slowed the measurement)"
    )
    phases = _share_table(("where the time goes", "s per epoch"), seconds, ".4f")
    operations = _share_table(
        ("most expensive operations, by scope", "us per step, all devices"),
        scopes,
        ",.1f",
    )
    return (
        f"{phases}\n\n{operations}\n\n"
        f"training steps: {gflops:,.1f} GFLOP/s, {gflops / peak:.1%} of the "
        f"{peak:,.0f} GFLOP/s measured for matrix products in float32"
        f"{above if gflops > peak else ''}\n"
        f"peak memory: process {peak_megabytes():,.0f} MB{device}\n"
        f"trace: {_newest(folder, '*.trace.json.gz')} (open with "
        f"https://ui.perfetto.dev; XProf takes {folder})"
    )
