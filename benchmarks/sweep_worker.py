"""The trials of a sweep, and the workers that train them, in processes or on Ray.

All workers run the same loop. They share the folder of the sweep, with Optuna's journal
of the trials, and nothing else.
"""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import optuna
from absl import logging
from optuna.trial import TrialState

from mnist_jax.cli.main import SIGNALS, start_jax
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.records.files import hold_lock, write_file
from mnist_jax.reporting.sweep_tables import (
    JOURNAL,
    as_settings,
    open_storage,
    open_studies,
    validation_accuracy,
)
from mnist_jax.training.checkpoints import remove_checkpoints
from mnist_jax.training.fit import Epoch
from mnist_jax.training.prepare import Experiment, prepare
from mnist_jax.training.run_dir import RUNS, digest, read_record, run_keys
from mnist_jax.training.runs import train_runs

from .sweep_space import Params, Space, make_config, name_of

ATTEMPTS = 5  # to train a trial whose process dies, as without memory
ENDED = TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL
POLL_SECONDS = 0.1

Prepare = Callable[[TrainConfig, Dataset, int], Experiment]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What all processes of a sweep know."""

    out: Path
    space: Space
    given: dict[str, str]  # see `make_config`
    dataset: Dataset
    seeds: Sequence[int]
    tpe: bool  # whether the workers draw the parameters
    search_seed: int
    prune: tuple[int, int] | None  # --min_epochs and --reduction
    machine: dict[str, Any]  # arguments of `setup`
    cores: int  # of a trial
    quiet: bool


class Trials:
    """The trials of a sweep, in the journal that its processes share."""

    def __init__(self, sweep: Sweep) -> None:
        """Opens the journal."""
        self.sweep, self._storage = sweep, open_storage(sweep.out)
        pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
        if sweep.prune:
            pruner = optuna.pruners.SuccessiveHalvingPruner(*sweep.prune)
        self.study = optuna.create_study(
            storage=self._storage,
            pruner=pruner,
            study_name=digest(sweep.space, sweep.given, [*sweep.seeds]),
            direction="maximize",
            load_if_exists=True,
        )

    def of(self, *states: TrialState) -> list[optuna.trial.FrozenTrial]:
        """Returns the trials in some states, or all."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def fill(self, chosen: Sequence[Params]) -> None:
        """Adds the missing ones of the chosen trials, without parameters for TPE."""
        data = self.sweep.dataset
        for study in open_studies(self.sweep.out):
            if study.user_attrs.get("checksum", data.checksum) != data.checksum:
                raise InputError(
                    f"--out={self.sweep.out} holds trials on other data than "
                    f"{data.name}, whose accuracies do not compare; give another --out"
                )
        self.study.set_user_attr("flags", self.sweep.given)
        self.study.set_user_attr("checksum", data.checksum)
        known = [trial.user_attrs["queued"] for trial in self.of()]
        missing = [params for params in chosen if params not in known]
        for params in chosen[len(known) :] if self.sweep.tpe else missing:
            self.study.enqueue_trial(params, {"queued": params})

    def requeue(self, worker: int | None = None) -> bool:
        """Lets the trial of a dead worker wait again; returns whether there was one.

        Without a worker it is that of all, with new attempts.
        """
        found = [
            trial
            for trial in self.of(TrialState.RUNNING)
            if worker in (None, trial.user_attrs.get("worker"))
        ]
        for trial in found:
            if worker is None:
                self._storage.set_trial_user_attr(trial._trial_id, "attempts", 0)
            self._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        return bool(found)

    def take(self, worker: int) -> optuna.Trial | None:
        """Returns the next trial, which now runs, or None if none waits."""
        # `ask` would create a trial if another process took the last one.
        with hold_lock(self.sweep.out / ".take"):
            if not (waiting := self.of(TrialState.WAITING)):
                return None
            if self.sweep.tpe:  # what was drawn before is not drawn again
                seed = self.sweep.search_seed + len(self.of()) - len(waiting)
                self.study.sampler = optuna.samplers.TPESampler(seed=seed)
            trial = self.study.ask(self.sweep.space)
            trial.set_user_attr("worker", worker)
            attempts = trial.user_attrs.get("attempts", 0)
            trial.set_user_attr("attempts", attempts + 1)
        return trial


def _prepare(
    last: dict[Any, Experiment], config: TrainConfig, dataset: Dataset, seeds: int
) -> Experiment:
    """Prepares an experiment, from the last one if only the learning rate differs."""
    key = dataclasses.replace(config, learning_rate=1.0, seed=0), seeds
    if key in last:
        config = config.for_dataset(dataset.name)
        return dataclasses.replace(
            last[key], config=config, compile_seconds=0.0, compile_cached=True
        )
    last.clear()  # frees its arrays before there are new ones
    last[key] = prepare(config, dataset, seeds)
    return last[key]


def train_trials(sweep: Sweep, worker: int) -> None:
    """Trains trials until none waits.

    If a worker with this number has died, its trial is resumed.
    """
    trials, prepare_runs = Trials(sweep), partial(_prepare, {})
    trials.requeue(worker)
    while (trial := trials.take(worker)) is not None:
        accuracy = None
        try:
            if trial.user_attrs["attempts"] > ATTEMPTS:
                raise InputError(f"its process died {ATTEMPTS} times")
            accuracy = _train(sweep, trial, prepare_runs)
            state, outcome = TrialState.COMPLETE, f"validation accuracy {accuracy:.4f}"
        except optuna.TrialPruned as pruned:
            state, outcome = TrialState.PRUNED, f"pruned {pruned}"
        except InputError as error:
            state, outcome = TrialState.FAIL, f"failed ({error})"
        trial.set_user_attr("outcome", outcome)
        trials.study.tell(trial, accuracy, state)
        folder = sweep.out / RUNS / trial.user_attrs.get("folder", "")
        for seed in sweep.seeds:
            remove_checkpoints(folder / f"seed{seed}")


def _train(sweep: Sweep, trial: optuna.Trial, prepare_runs: Prepare) -> float:
    """Trains or resumes the runs of a trial; returns their validation accuracy."""
    settings, dataset = as_settings(trial.params), sweep.dataset
    config = make_config(settings, sweep.given, dataset)
    epochs = config.for_dataset(dataset.name).epochs
    # Named without the machine and the versions: trials may run on several.
    [key] = run_keys(config, dataset, [0]).values()
    folder = sweep.out / RUNS / f"{config.name}-{digest(key)}"
    trial.set_user_attr("folder", folder.name)
    folders = {seed: folder / f"seed{seed}" for seed in sweep.seeds}
    name, parent = name_of(settings), multiprocessing.parent_process()
    events = train_runs(config, dataset, folders, name=name, prepare_runs=prepare_runs)
    with contextlib.closing(events):
        for event in events:
            if parent and not parent.is_alive():  # that of a task on Ray is not known
                os._exit(1)
            if isinstance(event, Epoch):
                epoch = event.records[0].epoch
                accuracies = [record.val_accuracy or 0 for record in event.records]
                accuracy = statistics.fmean(accuracies)
                trial.report(accuracy, epoch)
                if epoch != epochs and trial.should_prune():
                    raise optuna.TrialPruned(f"{accuracy:.4f}")
            elif isinstance(event, str) and not sweep.quiet:
                if not event.endswith(("already recorded", "compiling ...")):
                    print(event, flush=True)
    records = [run for path in folders.values() if (run := read_record(path))]
    return statistics.fmean(map(validation_accuracy, records))


def work(sweep: Sweep, worker: int, accelerator: float) -> None:
    """Starts JAX in a process, with a share of an accelerator, and trains trials."""
    if not (sweep.out / JOURNAL).exists():
        raise InputError(
            f"{socket.gethostname()} has no {sweep.out}; give an --out that all nodes "
            "share"
        )
    logging.set_verbosity(logging.WARNING)
    if accelerator:
        memory = f"{0.75 * min(accelerator, 1):.3f}"
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", memory)
    os.environ["NPROC"] = str(sweep.cores)  # threads of XLA:CPU
    devices = sweep.machine["cpu_devices"] or sweep.cores
    start_jax({**sweep.machine, "cpu_devices": devices})
    train_trials(sweep, worker)


def _work_here(sweep: Sweep, worker: int, workers: int) -> None:
    """Works in a process of this machine, with its share of the cores."""
    for received in {*SIGNALS} - {signal.SIGTERM}:  # they reach all of a terminal
        signal.signal(received, signal.SIG_IGN)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        first = worker * sweep.cores % len(cores)
        os.sched_setaffinity(0, cores[first : first + sweep.cores])
    work(sweep, worker, 1 / workers)


def run_processes(sweep: Sweep, workers: int, poll: Callable[[], None]) -> None:
    """Trains trials side by side in processes that share the cores.

    It calls `poll` several times a second, which raises to stop.
    """
    context, trials = multiprocessing.get_context("spawn"), Trials(sweep)

    def start(number: int) -> BaseProcess:
        words = sweep, number, workers
        process = context.Process(target=_work_here, args=words, daemon=True)
        process.start()
        return process

    processes = {number: start(number) for number in range(workers)}
    try:
        while processes:
            poll()
            time.sleep(POLL_SECONDS)
            ended = [n for n, process in processes.items() if not process.is_alive()]
            for number in ended:
                if not (code := processes.pop(number).exitcode):
                    continue
                if code > 0 or not trials.requeue(number):
                    raise InputError(f"a worker ended with exit code {code}, see above")
                print(f"a worker ended with exit code {code} and is replaced")
                processes[number] = start(number)
    finally:
        for process in processes.values():  # what they have written can be resumed
            process.kill()
            process.join()


def run_on_ray(
    sweep: Sweep, address: str, gpus: float, poll: Callable[[], None]
) -> None:
    """Trains trials in tasks, as many at a time as the nodes have CPUs and GPUs for.

    `gpus` are those of a trial. It calls `poll` as `run_processes` does.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # It would start every worker by `uv run`, which needs the network and a lock file.
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    import ray

    trials = Trials(sweep)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        host, colon, port = address.rpartition(":")
        if colon and port.isdigit() and "/" not in address:  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start "
            "--head`, or give its address by --address or RAY_ADDRESS"
        ) from error
    for number, handler in handlers.items():  # Ray has set its own
        signal.signal(number, handler)
    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(
            node.get("CPU", 0) >= sweep.cores and node.get("GPU", 0) >= gpus
            for node in nodes
        ):  # Ray would wait for one
            raise InputError(
                f"no node of the Ray cluster has --cpus_per_trial={sweep.cores} and "
                f"--gpus_per_trial={gpus:g}; give less, or start larger nodes"
            )
        task: Any = ray.remote(work).options(
            num_cpus=sweep.cores,
            num_gpus=gpus,
            max_retries=ATTEMPTS,
            scheduling_strategy="SPREAD",
        )
        shared, waiting = ray.put(sweep), trials.of(TrialState.WAITING)
        # A task for each trial: later nodes take those that still wait.
        tasks = [task.remote(shared, number, gpus) for number in range(len(waiting))]
        while tasks and trials.of(TrialState.WAITING, TrialState.RUNNING):
            poll()
            ended, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=POLL_SECONDS)
            ray.get(ended)
    finally:
        ray.shutdown()  # also ends the tasks that run


def repair_journal(out: Path) -> None:
    """Removes from a journal that no process uses what a kill may have left."""
    (out / f"{JOURNAL}.lock").unlink(missing_ok=True)
    if (path := out / JOURNAL).exists():
        content = path.read_bytes()
        write_file(path, content[: content.rfind(b"\n") + 1])
