"""Runs one measurement in a separate process and monitors other programs' load."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mnist_jax.records.environment import Environment, available_cores

from .frameworks import FRAMEWORKS, PEAK_CELL, Cell, PeerRecord, Setup

WORKER_SECONDS = 3600  # timeout of a worker


class Conditions(NamedTuple):
    """What all measurements of a benchmark run share."""

    setups: Mapping[str, Setup]  # by model
    environment: Environment
    arrays: Path  # folder written by `save_arrays`
    others_limit: float  # cores


def _busy_seconds() -> float:
    """Returns the busy seconds of all cores since boot, 0 if unknown."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        # user, nice and system; then irq and softirq, leaving out idle and iowait.
        ticks = sum(map(int, fields[1:4])) + sum(map(int, fields[6:8]))
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return 0.0


def _benchmark_seconds() -> float:
    """Returns the CPU seconds of this process and its finished workers."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _worker_arguments(conditions: Conditions, cell: Cell, seed: int) -> list[str]:
    """Returns the worker module and the flags of a measurement."""
    if cell == PEAK_CELL:
        return [f"{__package__}.matmul_worker"]
    framework = FRAMEWORKS[cell.framework]
    variant = framework.variants[cell.model]
    return [
        f"{__package__}.{framework.module}",
        f"--model={cell.model}",
        f"--batch_size={cell.batch_size}",
        f"--steady_epochs={conditions.setups[cell.model].steady_epochs}",
        f"--seed={seed}",
        f"--threads={available_cores()}",
        f"--arrays={conditions.arrays}",
        *([f"--variant={variant}"] if variant else []),
    ]


def run_worker_process(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> dict[str, Any]:
    """Runs a worker process.

    Args:
        arguments: the worker's module and flags.
        environment: environment variables to set.

    Returns:
        A dict with the worker's `result`, or as `error` the last line of its stderr.
    """
    threads = str(available_cores())
    settings = {
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    try:
        process = subprocess.run(
            [sys.executable, "-m", *arguments],
            env={**os.environ, **settings, **environment},
            capture_output=True,
            text=True,
            timeout=WORKER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no result after {WORKER_SECONDS} s"}
    if process.returncode == 0:
        return {"result": json.loads(process.stdout.splitlines()[-1])}
    lines = process.stderr.strip().splitlines()
    return {"error": lines[-1] if lines else f"exit status {process.returncode}"}


def measure(conditions: Conditions, round_number: int, cell: Cell) -> PeerRecord:
    """Runs one measurement of a round; the round number is the seed."""
    environment = {} if cell == PEAK_CELL else FRAMEWORKS[cell.framework].environment
    load, start = round(os.getloadavg()[0], 2), time.perf_counter()
    busy, used = _busy_seconds(), _benchmark_seconds()
    outcome = run_worker_process(
        _worker_arguments(conditions, cell, round_number), environment
    )
    elapsed = time.perf_counter() - start
    others = (_busy_seconds() - busy) - (_benchmark_seconds() - used)
    others_cores = round(max(others, 0.0) / elapsed, 2)
    return PeerRecord(
        **cell._asdict(),
        round=round_number,
        run=conditions.setups[cell.model],
        environment=conditions.environment,
        date=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        load=load,
        wall_seconds=round(elapsed, 2),
        others_cores=others_cores,
        # Threads that synchronize suffer most: with one of two cores kept busy by other
        # programs, PyTorch's LSTM took 34 s for 6,000 images instead of 1.4-1.9 s.
        disturbed=others_cores > conditions.others_limit,
        **outcome,
    )
