"""Profiles training: time per epoch by phase, time per step by scope, a trace."""

import collections
import itertools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from jax.profiler import ProfileData

from mnist_jax.data.batches import epoch_indices
from mnist_jax.models.flops import training_flops
from mnist_jax.profiling.hardware import matmul_peak, peak_megabytes
from mnist_jax.reporting.tables import markdown_table
from mnist_jax.training.prepare import Experiment

EPOCHS = 3  # timed, after one to warm up
TRACED_STEPS = 100  # more would fill the trace: an LSTM step has 1,000 operations
SHOWN = 10  # scopes in the printed table
PHASES = ("input", "training steps", "evaluation", "host")
# Operations that only contain others, whose time would count twice.
_CONTAINERS = {"while", "call", "conditional"}
# Components of a scope's path that JAX and Flax add.
_NOISE = re.compile(r"jit\(.*\)|shard_map|while|body|closed_call|custom_vjp_call|cond")


def time_epochs(
    experiment: Experiment,
    evaluated: jax.Array | None = None,
    chunks: Sequence[tuple[int, int | None]] = ((0, None),),
) -> Iterator[dict[str, float]]:
    """Trains new parameters, and yields the seconds of each phase of each epoch.

    Args:
        experiment: as returned by `prepare`.
        evaluated: indices of the held-out images to evaluate after an epoch, if any.
        chunks: first and last step, exclusive, of each call of the train program in
            an epoch; default: one call for all steps.
    """
    config, programs = experiment.config, experiment.programs
    size = len(experiment.dataset.train.labels)
    states, run_keys = programs.init_run(range(experiment.seeds))
    for epoch in itertools.count():
        ticks = [time.perf_counter()]
        order = epoch_indices(config.seed, epoch, size, config.batch_size)
        indices = programs.shard(np.stack([order] * experiment.seeds))
        keys = programs.epoch_keys(run_keys, epoch)
        jax.block_until_ready((indices, keys))
        ticks.append(time.perf_counter())
        for start, stop in chunks:
            states, metrics = jax.block_until_ready(
                programs.run_steps(states, experiment.train, indices, keys, start, stop)
            )
        ticks.append(time.perf_counter())
        if evaluated is not None:
            jax.block_until_ready(
                programs.evaluate(states.variables, experiment.held_out, evaluated)
            )
        ticks.append(time.perf_counter())
        jax.device_get(metrics)
        ticks.append(time.perf_counter())
        yield dict(zip(PHASES, np.diff(ticks).tolist(), strict=True))


def read_scopes(hlo: str) -> dict[str, str]:
    """Maps the operation names of a compiled program (HLO text) to their scopes.

    >>> read_scopes('%dot.1 = f32[2]{0} dot(%a, %b), '
    ...             'metadata={op_name="jit(f)/while/body/jvp(MLP)/Dense_0/dot"}')
    {'dot.1': 'jvp(MLP)/Dense_0/dot'}
    """
    scopes = {}
    operation = r'%?([\w.-]+) = .*? ([\w-]+)\((?:.*op_name="([^"]*)")?'
    for name, opcode, path in re.findall(operation, hlo):
        parts = [part for part in path.split("/") if not _NOISE.fullmatch(part)]
        if opcode not in _CONTAINERS:
            scopes[name] = "/".join(filter(None, parts)) or name.rstrip(".0123456789")
    return scopes


def trace_steps(experiment: Experiment, folder: Path) -> dict[str, float]:
    """Writes a trace of some training steps and returns its time by scope.

    In microseconds per step, summed over the devices, largest first.
    """
    programs, batch_size = experiment.programs, experiment.config.batch_size
    steps = min(TRACED_STEPS, -(-len(experiment.dataset.train.labels) // batch_size))
    epochs = time_epochs(experiment, chunks=[(0, steps)])
    next(epochs)  # compiles what else it needs
    folder.mkdir(parents=True, exist_ok=True)
    with jax.profiler.trace(folder):
        next(epochs)
    scopes = read_scopes(programs.train.as_text() or "")
    trace = ProfileData.from_file(str(max(folder.rglob("*.xplane.pb"))))
    nanoseconds: collections.Counter[str] = collections.Counter()
    for plane in trace.planes:
        for line in plane.lines:
            for event in line.events:
                if event.name in scopes:
                    nanoseconds[scopes[event.name]] += event.duration_ns
    return {scope: ns / 1e3 / steps for scope, ns in nanoseconds.most_common()}


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
    epochs = time_epochs(experiment, experiment.validation)
    _, *timed = itertools.islice(epochs, EPOCHS + 1)  # the first is a warm-up
    seconds = pd.DataFrame(timed).median().to_dict()
    scopes, dataset = trace_steps(experiment, folder), experiment.dataset
    flops = training_flops(experiment.config, dataset.shapes)
    gflops = flops * len(dataset.train.labels) / seconds["training steps"] / 1e9
    peak = matmul_peak()
    memory = experiment.programs.mesh.local_devices[0].memory_stats() or {}
    device = memory.get("peak_bytes_in_use", 0) / 1e6
    phases = _share_table(("where the time goes", "s per epoch"), seconds, ".4f")
    operations = _share_table(
        ("most expensive operations, by scope", "us per step, all devices"),
        scopes,
        ",.1f",
    )
    return (
        f"{phases}\n\n{operations}\n\n"
        f"training steps: {gflops:,.1f} GFLOP/s, {gflops / peak:.1%} of the "
        f"{peak:,.0f} GFLOP/s measured for matrix products in float32 (may exceed "
        "100%: Winograd's convolution multiplies less than is counted, and bfloat16 "
        "is faster)\n"
        f"peak memory: process {peak_megabytes():,.0f} MB"
        f"{f', device {device:,.0f} MB' if device else ''}\n"
        f"trace: {max(folder.rglob('*.trace.json.gz'))} (open with "
        f"https://ui.perfetto.dev; XProf takes {folder})"
    )
