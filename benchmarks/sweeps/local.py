"""Trains the trials of a sweep on this machine."""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

from absl import logging

from mnist_jax.cli.main import Machine, start_jax
from mnist_jax.cli.signals import SIGNALS
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.training.trials import FAILED, Trial, TrialResult, TrialRunner

from .driver import Sweep

ATTEMPTS = 3  # to train a trial whose process dies, as without memory


def run_here(sweep: Sweep, check_stopped: Callable[[], None]) -> None:
    """Trains the trials one after the other in this process, where JAX has started."""
    runner = TrialRunner(sweep.dataset)
    while (trial := sweep.next()) is not None:
        on_epoch, note = partial(sweep.on_epoch, trial), sweep.progress.note
        sweep.on_end(trial, runner.train(trial, on_epoch, check_stopped, note))


def run_processes(
    sweep: Sweep, workers: int, machine: Machine, check_stopped: Callable[[], None]
) -> None:
    """Trains trials side by side in processes that share the cores.

    Args:
        sweep: the sweep.
        workers: number of processes.
        machine: how each sets JAX up.
        check_stopped: called several times a second; raises to stop.

    Raises:
        InputError: a process cannot write a file, or set JAX up.
    """
    slots = [
        _Worker(sweep, machine, cores, 1 / workers) for cores in split_cores(workers)
    ]
    more = True
    try:
        while more or any(slot.trial for slot in slots):
            check_stopped()
            for slot in slots:
                if more and slot.trial is None:
                    trial = sweep.next()
                    more = trial is not None
                    if trial is not None:
                        slot.start(trial)
            busy = {slot.connection: slot for slot in slots if slot.trial}
            for connection in wait(list(busy), timeout=0.2):
                busy[connection].receive()  # type: ignore[index]
    finally:
        for slot in slots:
            slot.kill()


def split_cores(workers: int) -> list[list[int]]:
    """Returns the cores of each process; some share one if there are too few.

    >>> [len(cores) for cores in split_cores(1)] == [len(os.sched_getaffinity(0))]
    True
    """
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(workers)]
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // workers)
    starts = [number * each % len(cores) for number in range(workers)]
    return [cores[start : start + each] for start in starts]


def share_accelerator(share: float) -> None:
    """Lets JAX take only a share of the memory of an accelerator, before it starts."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.75 * share:.3f}")


class _Worker:
    """A process that trains one trial after the other."""

    def __init__(
        self, sweep: Sweep, machine: Machine, cores: Sequence[int], share: float
    ) -> None:
        self._sweep, self._arguments = sweep, (machine, cores, share)
        self.trial: Trial | None = None
        self._attempts = 0
        self._process: Any = None
        self.connection: Connection

    def start(self, trial: Trial) -> None:
        """Starts a trial, and the process if it does not run."""
        if self._process is None or not self._process.is_alive():
            context = multiprocessing.get_context("spawn")
            self.connection, other = context.Pipe()
            arguments = other, self._sweep.dataset, *self._arguments
            self._process = context.Process(target=_work, args=arguments, daemon=True)
            self._process.start()
            other.close()  # so that its end is closed when the process ends
        if trial is not self.trial:
            self.trial, self._attempts = trial, 0
        self._attempts += 1
        self._send(trial)

    def receive(self) -> None:
        """Handles a message of the process, or its death."""
        assert self.trial is not None
        try:
            kind, *content = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self._on_death()
            return
        if kind == "epoch":
            self._send(self._sweep.on_epoch(self.trial, *content))
        elif kind == "note":
            self._sweep.progress.note(*content)
        elif kind == "error":
            raise InputError(*content)
        else:
            trial, self.trial = self.trial, None
            self._sweep.on_end(trial, *content)

    def _send(self, message: object) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has died: see `receive`
            self.connection.send(message)

    def kill(self) -> None:
        """Ends the process at once: what it has written can be resumed."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _on_death(self) -> None:
        assert self.trial is not None
        self._process.join()
        died = f"its process ended with exit code {self._process.exitcode}"
        self._sweep.progress.note(f"{self.trial.name}: {died}")
        if self._attempts < ATTEMPTS:
            self.start(self.trial)
            return
        trial, self.trial = self.trial, None
        self._sweep.on_end(trial, TrialResult(FAILED, f"{died}, {ATTEMPTS} times"))


def _work(
    connection: Connection,
    dataset: Dataset,
    machine: Machine,
    cores: Sequence[int],
    share: float,
) -> None:
    """Trains the trials that arrive, until the other end is closed."""
    for number in {*SIGNALS} - {signal.SIGTERM}:  # they reach all of a terminal or job
        signal.signal(number, signal.SIG_IGN)
    logging.set_verbosity(logging.WARNING)
    parent = os.getppid()
    share_accelerator(share)
    if cores:
        os.sched_setaffinity(0, cores)

    def on_epoch(epoch: int, accuracy: float) -> bool:
        connection.send(("epoch", epoch, accuracy))
        return bool(connection.recv())

    def check_parent() -> None:
        if os.getppid() != parent:
            raise EOFError

    def note(message: str) -> None:
        connection.send(("note", message))

    try:
        start_jax(machine)
        runner = TrialRunner(dataset)
        while True:
            trial = connection.recv()
            result = runner.train(trial, on_epoch, check_parent, note)
            connection.send(("end", result))
    except InputError as error:
        connection.send(("error", str(error)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the sweep has ended
