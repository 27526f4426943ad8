"""Runs workers that take turns, one epoch each, and monitors other programs' load."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mnist_jax.records.environment import Environment, available_cores

from .frameworks import FRAMEWORKS, PEAK_CELL, Cell, PeerRecord, Setup
from .worker import TURN_OVER

WORKER_SECONDS = 3600  # timeout of a worker
_TICKS = os.sysconf("SC_CLK_TCK")  # per second


class Conditions(NamedTuple):
    """What all measurements of a benchmark run share."""

    setups: Mapping[str, Setup]  # by model
    environment: Environment
    arrays: Path  # with a folder for each model, written by `save_arrays`
    others_limit: float  # cores


class Worker:
    """A worker process; it starts with its first epoch, which includes compilation."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]):
        """Starts the process.

        Args:
            arguments: the worker's module and flags.
            environment: environment variables to set.
        """
        threads = str(available_cores())
        settings = {
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }
        self._errors = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env={**os.environ, **settings, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._timer = threading.Timer(WORKER_SECONDS, self._process.kill)
        self._timer.daemon = True
        self._timer.start()
        self.outcome: dict[str, Any] = {}  # `result` or `error`, once it has ended
        self._wait()

    def take_turn(self) -> None:
        """Lets it train an epoch, unless it has ended."""
        if not self.outcome:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write("\n")
                self._process.stdin.flush()
            self._wait()

    def _wait(self) -> None:
        """Waits until its turn is over or it ends."""
        assert self._process.stdout is not None
        last = ""
        for line in self._process.stdout:
            last = line.strip()
            if last == TURN_OVER:
                return
        status = self._process.wait()
        self._timer.cancel()
        if status == 0:
            self.outcome = {"result": json.loads(last)}
            return
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        self.outcome = {"error": lines[-1] if lines else f"exit status {status}"}

    def stop(self) -> None:
        """Ends the process if it has not ended."""
        self._timer.cancel()
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def cpu_seconds(self) -> float:
        """Returns the CPU seconds used so far, 0 once it has ended."""
        try:
            text = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return 0.0
        # user and system, after the name, which may contain spaces
        return sum(map(int, text.rpartition(")")[2].split()[11:13])) / _TICKS


class _Load:
    """Measures the cores that other programs use."""

    def __init__(self, workers: Sequence[Worker]):
        self._workers = workers
        self._start = self._others(), time.perf_counter()

    def _others(self) -> float:
        """Returns the busy seconds of all cores since boot, without the benchmark."""
        used = os.times()
        own = used.user + used.system + used.children_user + used.children_system
        return _busy_seconds() - own - sum(w.cpu_seconds() for w in self._workers)

    def cores(self) -> float:
        """Returns the mean number of cores used by others since the start."""
        others, start = self._start
        return max(self._others() - others, 0.0) / (time.perf_counter() - start)


def _busy_seconds() -> float:
    """Returns the busy seconds of all cores since boot, 0 if unknown."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        # user, nice and system; then irq and softirq, leaving out idle and iowait.
        return (sum(map(int, fields[1:4])) + sum(map(int, fields[6:8]))) / _TICKS
    except (OSError, ValueError):
        return 0.0


def _start(conditions: Conditions, cell: Cell, seed: int) -> Worker:
    """Starts the worker of a cell."""
    if cell == PEAK_CELL:
        return Worker([f"{__package__}.matmul_worker"], {})
    framework = FRAMEWORKS[cell.framework]
    variant = framework.variants[cell.model]
    arguments = [
        f"{__package__}.{framework.module}",
        f"--model={cell.model}",
        f"--batch_size={cell.batch_size}",
        f"--steady_epochs={conditions.setups[cell.model].steady_epochs}",
        f"--seed={seed}",
        f"--threads={available_cores()}",
        f"--arrays={conditions.arrays / cell.model}",
        "--turns",
        *([f"--variant={variant}"] if variant else []),
    ]
    return Worker(arguments, framework.environment)


def measure(
    conditions: Conditions, round_number: int, cells: Sequence[Cell]
) -> list[PeerRecord]:
    """Runs cells of one model and batch size, which take turns after each epoch.

    Episodes in which the machine is slower, which last seconds on shared hosts, then
    meet all of them. The order is reversed in every other cycle of turns.

    Args:
        conditions: as for all rounds.
        round_number: the seed of the workers.
        cells: what to run.

    Returns:
        A record of each cell. Cycles during which other programs used more than
        `conditions.others_limit` cores are left out; if most were, the records are
        marked as disturbed.
    """
    load, begin = round(os.getloadavg()[0], 2), time.perf_counter()
    setup = conditions.setups[cells[0].model]
    workers: list[Worker] = []
    others = []
    try:
        for cell in cells:
            alone = _Load(workers)
            workers.append(_start(conditions, cell, round_number))
        if not setup.steady_epochs:
            others.append(alone.cores())
        for cycle in range(setup.steady_epochs):
            during = _Load(workers)
            for worker in workers[:: -1 if cycle % 2 else 1]:
                worker.take_turn()
            others.append(during.cores())
    finally:
        for worker in workers:
            worker.stop()
    quiet = [cycle for cycle, c in enumerate(others) if c <= conditions.others_limit]
    for worker in workers:
        result = worker.outcome.get("result", {})
        if seconds := result.get("epoch_seconds"):
            kept = [seconds[1 + cycle] for cycle in quiet]
            result["epoch_seconds"] = [seconds[0], *kept]
    return [
        PeerRecord(
            **cell._asdict(),
            round=round_number,
            run=setup,
            environment=conditions.environment,
            date=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
            load=load,
            wall_seconds=round(time.perf_counter() - begin, 2),
            others_cores=round(statistics.mean(others), 2),
            # Threads that synchronize suffer most: with one of two cores kept busy by
            # other programs, PyTorch's LSTM took 34 s for 6,000 images instead of
            # 1.4-1.9 s.
            disturbed=2 * len(quiet) < len(others),
            **worker.outcome,
        )
        for cell, worker in zip(cells, workers, strict=True)
    ]
