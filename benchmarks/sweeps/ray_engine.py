"""Trains the trials of a sweep on a Ray cluster, a task for each."""

import contextlib
import math
import os
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import logging

from mnist_jax.cli.main import Machine, start_jax
from mnist_jax.cli.signals import SIGNALS
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.records.environment import check_packages
from mnist_jax.records.files import write_file
from mnist_jax.training.run_dir import FILES, RECORD
from mnist_jax.training.trials import FAILED, Trial, TrialResult, TrialRunner

from .driver import Sweep
from .local import share_accelerator

RETRIES = 5  # of a trial whose process or node dies
_POLL_SECONDS = 0.05
_CONNECT_SECONDS = 60  # until a cluster must have answered
_MARK = (
    ".sweep"  # file in the folder of a sweep, by which a node finds out if it has it
)


def run_on_ray(
    sweep: Sweep,
    address: str,
    cpus: int,
    gpus: float,
    machine: Machine,
    check_stopped: Callable[[], None],
) -> None:
    """Trains trials as tasks, as many at a time as the nodes have CPUs and GPUs for.

    A node that has the sweep's folder, as on a shared file system, trains there, and
    the next attempt resumes from its checkpoints. Otherwise it sends the files of the
    finished runs back.

    Args:
        sweep: the sweep.
        address: of the cluster.
        cpus: CPUs for a trial; JAX has as many devices on a CPU.
        gpus: GPUs for a trial.
        machine: how each process sets JAX up.
        check_stopped: called several times a second; raises to stop.

    Raises:
        InputError: Ray is not installed, there is no such cluster, or no node is large
            enough; a file cannot be written.
    """
    ray = _import_ray()
    if address == "auto":  # as Ray does
        address = os.environ.get("RAY_ADDRESS") or address
    try:
        _connect(ray, address, check_stopped)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start "
            "--head`, or give its address by --address or RAY_ADDRESS"
        ) from error
    try:
        _run_tasks(ray, sweep, cpus, gpus, machine, check_stopped)
    finally:
        ray.shutdown()  # also ends the tasks that run


def _import_ray() -> ModuleType:
    check_packages("--engine=ray", ["ray"], "sweep")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # It would start every worker by `uv run`, which needs the network and a lock file.
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    import ray

    return ray


def _connect(ray: Any, address: str, check_stopped: Callable[[], None]) -> None:
    """Connects to a cluster.

    In a thread, which can be given up, and where Ray leaves the handler of SIGTERM.

    Raises:
        OSError: nothing answers there, or not in time; Ray would try for minutes.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in address:
        socket.create_connection((host, int(port)), timeout=5).close()
    errors: list[Exception] = []

    def connect() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    limit = time.monotonic() + _CONNECT_SECONDS
    while thread.is_alive():
        check_stopped()
        if time.monotonic() > limit:
            raise TimeoutError(f"not within {_CONNECT_SECONDS} s")
        thread.join(_POLL_SECONDS)
    if errors:
        raise errors[0]
    for number in SIGNALS:  # of which Ray's C++ prints a stack trace
        signal.signal(number, signal.getsignal(number))


class Mailbox:
    """An actor with the messages of the tasks, and the driver's answers."""

    def __init__(self) -> None:
        self._messages: list[tuple[Any, ...]] = []
        self._answers: dict[str, tuple[int, bool]] = {}  # last epoch, whether to stop

    def report(self, name: str, epoch: int, accuracy: float) -> bool | None:
        """Takes an epoch's accuracy; returns whether to stop, None if not known yet."""
        answered, stop = self._answers.get(name, (0, False))
        if epoch == answered:
            return stop
        message = ("epoch", name, epoch, accuracy)
        if message not in self._messages:
            self._messages.append(message)
        return None

    def note(self, text: str) -> None:
        """Takes a message for the user."""
        self._messages.append(("note", text))

    def take(self, answers: Mapping[str, tuple[int, bool]]) -> list[tuple[Any, ...]]:
        """Takes the driver's answers; returns the new messages."""
        self._answers.update(answers)
        messages, self._messages = self._messages, []
        return messages


def _run_tasks(
    ray: Any,
    sweep: Sweep,
    cpus: int,
    gpus: float,
    machine: Machine,
    check_stopped: Callable[[], None],
) -> None:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not count_slots(ray.nodes(), cpus, gpus):
        raise InputError(
            f"no node of the Ray cluster has --cpus_per_trial={cpus} and "
            f"--gpus_per_trial={gpus:g}; give less, or start larger nodes"
        )
    mark = secrets.token_hex(8)
    write_file(sweep.out / _MARK, mark)
    here = ray.get_runtime_context().get_node_id()
    stay = NodeAffinitySchedulingStrategy(here, soft=True)
    mailbox = (
        ray.remote(Mailbox)
        .options(
            num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=stay
        )
        .remote()
    )
    task = ray.remote(train_task).options(
        num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES, scheduling_strategy="SPREAD"
    )
    dataset = ray.put(sweep.dataset)
    waits = sweep.pruner is not None
    running: dict[Any, Trial] = {}
    answers: dict[str, tuple[int, bool]] = {}
    more = True
    while more or running:
        check_stopped()
        slots = max(1, count_slots(ray.nodes(), cpus, gpus))
        while more and len(running) < slots:
            trial = sweep.next()
            more = trial is not None
            if trial is not None:
                # The folder of a process on another node is another one.
                remote = trial._replace(folder=trial.folder.absolute())
                reference = task.remote(
                    remote,
                    sweep.out.absolute(),
                    mark,
                    dataset,
                    machine,
                    (cpus, gpus),
                    mailbox,
                    waits,
                )
                running[reference] = trial
        messages = ray.get(mailbox.take.remote(answers))
        answers = _handle(sweep, messages, list(running.values()))
        if not running:
            continue
        ended, _ = ray.wait(list(running), timeout=_POLL_SECONDS)
        for reference in ended:
            _finish(ray, sweep, running.pop(reference), reference)


def count_slots(nodes: list[dict[str, Any]], cpus: int, gpus: float) -> int:
    """Returns how many trials the living nodes have room for at a time."""
    total = 0
    for node in nodes:
        if node["Alive"]:
            has = node["Resources"]
            room = has.get("CPU", 0) // cpus
            if gpus:
                room = min(room, math.floor(has.get("GPU", 0) / gpus))
            total += int(room)
    return total


def _handle(
    sweep: Sweep, messages: list[tuple[Any, ...]], running: list[Trial]
) -> dict[str, tuple[int, bool]]:
    """Passes messages to the sweep; returns the answers to those about epochs."""
    trials = {trial.folder.name: trial for trial in running}
    answers: dict[str, tuple[int, bool]] = {}
    for kind, *content in messages:
        if kind == "note":
            sweep.progress.note(*content)
        elif content[0] in trials:
            name, epoch, accuracy = content
            answers[name] = epoch, sweep.on_epoch(trials[name], epoch, accuracy)
    return answers if sweep.pruner is not None else {}


def _finish(ray: Any, sweep: Sweep, trial: Trial, reference: Any) -> None:
    """Writes what a task sent back, and tells the sweep that its trial has ended."""
    try:
        result, files = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        result = TrialResult(FAILED, f"{reason} (after {RETRIES} retries)")
        files = {}
    # A record last: with it the run is finished.
    for name in sorted(files, key=lambda name: name.endswith(RECORD)):
        path = trial.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, files[name])
    sweep.on_end(trial, result)


_runner: tuple[str, TrialRunner] | None = None  # of this process


def train_task(
    trial: Trial,
    out: Path,
    mark: str,
    dataset: Dataset,
    machine: Machine,
    resources: tuple[int, float],
    mailbox: Any,
    waits: bool,
) -> tuple[TrialResult, dict[str, bytes]]:
    """Trains a trial in a process of the cluster.

    Args:
        trial: what to train.
        out: folder of the sweep on the driver's node.
        mark: content of a file in it.
        dataset: as returned by `load_dataset`.
        machine: how to set JAX up.
        resources: CPUs, and so threads and devices of JAX on a CPU, and GPUs.
        mailbox: a `Mailbox`.
        waits: whether the driver answers after each epoch.

    Returns:
        How it ended, and the files of its runs unless `out` is on this node too.
    """
    global _runner
    ray = _import_ray()
    if _runner is None or _runner[0] != dataset.checksum:
        logging.set_verbosity(logging.WARNING)
        cpus, gpus = resources
        if gpus:
            share_accelerator(min(gpus, 1))
        os.environ["NPROC"] = str(cpus)  # threads of XLA:CPU
        start_jax(machine._replace(cpu_devices=machine.cpu_devices or cpus))
        _runner = dataset.checksum, TrialRunner(dataset)

    def on_epoch(epoch: int, accuracy: float) -> bool:
        while True:
            report = mailbox.report.remote(trial.folder.name, epoch, accuracy)
            if not waits:
                return False
            if (answer := ray.get(report)) is not None:
                return bool(answer)
            time.sleep(_POLL_SECONDS)

    def note(message: str) -> None:
        mailbox.note.remote(message)

    with contextlib.ExitStack() as stack:
        here = trial
        shared = _read_mark(out) == mark
        if not shared:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            here = trial._replace(folder=Path(folder) / trial.folder.name)
        result = _runner[1].train(here, on_epoch, notify=note)
        return result, {} if shared else _read_files(here)


def _read_mark(out: Path) -> str:
    try:
        return (out / _MARK).read_text()
    except OSError:
        return ""


def _read_files(trial: Trial) -> dict[str, bytes]:
    """Returns the files of a trial's run directories, by path below its folder."""
    found = (path / name for path in trial.folders.values() for name in FILES)
    return {
        path.relative_to(trial.folder).as_posix(): path.read_bytes()
        for path in found
        if path.exists()
    }
