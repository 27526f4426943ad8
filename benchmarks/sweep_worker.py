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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from absl.flags import FlagValues
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from mnist_jax.cli.config_flags import config_from_flags, define_config_flags
from mnist_jax.cli.main import SIGNALS, start_jax
from mnist_jax.cli.parsing import parse_flags
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.networks import create_model
from mnist_jax.records.files import hold_lock, write_file
from mnist_jax.records.schema import RunRecord, read_json
from mnist_jax.reporting.sweep_tables import (
    JOURNAL,
    as_settings,
    open_storage,
    validation_accuracy,
)
from mnist_jax.training.checkpoints import remove_checkpoints
from mnist_jax.training.fit import Epoch
from mnist_jax.training.prepare import Experiment, prepare, split_for_training
from mnist_jax.training.run_dir import RECORD, RUNS, digest, run_folders
from mnist_jax.training.runs import train_runs

Space = dict[str, BaseDistribution]  # the values or the range of each varied flag
# Starts workers within its context, and yields a function: whether one still works.
Start = Callable[[], AbstractContextManager[Callable[[], bool]]]
MAX_DEATHS = 5  # of processes that train a trial, as without memory


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What all processes of a sweep know."""

    out: Path
    study: optuna.Study  # the trials, in the journal that the processes share
    space: Space
    sampler: Callable[..., optuna.samplers.BaseSampler]  # its argument is the seed
    search_seed: int
    given: dict[str, str]  # see `make_config`
    dataset: Dataset
    seeds: Sequence[int]
    machine: dict[str, Any]  # arguments of `setup`
    cores: int  # of a trial
    gpus: float  # of a trial, or its share of one

    def trials(self, *states: TrialState) -> list[optuna.trial.FrozenTrial]:
        """Returns the trials in some states, or all."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def add(self, chosen: Sequence[dict[str, Any]]) -> None:
        """Adds the missing ones of the chosen trials; empty ones will be sampled."""
        key = digest(self.space, self.given, [*self.seeds], self.dataset.checksum)
        if self.study.user_attrs.get("key", key) != key:
            raise InputError(
                f"--out={self.out} holds a sweep with other flags or data; give the "
                "same, or another --out"
            )
        self.study.set_user_attr("key", key)
        known = [trial.system_attrs["fixed_params"] for trial in self.trials()]
        for params in chosen:
            if params in known:
                known.remove(params)
            else:
                self.study.enqueue_trial(params)

    def requeue(self, deaths: int) -> bool:
        """Lets the trials whose processes have ended wait; returns whether any does.

        `deaths` is added to the number of their processes that died.
        """
        storage, stopped = self.study._storage, self.trials(TrialState.RUNNING)
        for trial in stopped:
            number, before = trial._trial_id, trial.user_attrs.get("deaths", 0)
            storage.set_trial_user_attr(number, "deaths", before + deaths)
            storage.set_trial_state_values(number, TrialState.WAITING)
        return bool(stopped)

    def take(self) -> optuna.Trial | None:
        """Returns the next trial, which now runs, or None if none waits."""
        # `ask` would create a trial if another process took the last one.
        with hold_lock(self.out / ".take"):
            if not (waiting := self.trials(TrialState.WAITING)):
                return None
            seed = self.search_seed + waiting[0].number  # of what it draws
            self.study.sampler = self.sampler(seed=seed)
            return self.study.ask(self.space)


def open_study(out: Path, pruner: optuna.pruners.BasePruner) -> optuna.Study:
    """Opens the study in a folder that no other process uses."""
    (out / f"{JOURNAL}.lock").unlink(missing_ok=True)  # a kill may have left both
    if (path := out / JOURNAL).exists():
        content = path.read_bytes()
        write_file(path, content[: content.rfind(b"\n") + 1])
    return optuna.create_study(
        storage=open_storage(out),
        pruner=pruner,
        study_name="sweep",
        direction="maximize",
        load_if_exists=True,
    )


def name_of(params: Mapping[str, Any]) -> str:
    """Returns parameters as in `model=mlp learning_rate=0.01`."""
    return " ".join(f"{name}={text}" for name, text in as_settings(params).items())


def make_config(
    params: Mapping[str, Any], given: Mapping[str, str], dataset: Dataset
) -> TrainConfig:
    """Returns the config of a trial; raises InputError if it cannot be trained.

    Args:
        params: the model, and the values of the varied flags.
        given: the other config flags that were given.
        dataset: that it must fit, and whose defaults it gets.
    """
    values, settings, named = FlagValues(), as_settings(params), name_of(params)
    define_config_flags(values)
    words = [f"--{name}={text}" for name, text in {**given, **settings}.items()]
    try:
        parse_flags(["sweep", *words], values)
        varied = {name: values[name].value for name in settings}
        config = config_from_flags(values, varied.pop("model"), **varied)
        config = config.for_dataset(dataset.name)
        config.require_validation("vary", named)
        create_model(config, dataset.shapes)
        split_for_training(dataset, config)
    except InputError as error:
        raise InputError(f"--vary: {named} cannot be trained: {error}") from error
    return config


def _prepare(
    last: dict[Any, Experiment], config: TrainConfig, dataset: Dataset, seeds: int
) -> Experiment:
    """Prepares an experiment, from the last one if only the learning rate differs."""
    key = dataclasses.replace(config, learning_rate=1.0, seed=0), seeds
    if key in last:
        return dataclasses.replace(
            last[key], config=config, compile_seconds=0.0, compile_cached=True
        )
    last.clear()  # frees its arrays before there are new ones
    last[key] = prepare(config, dataset, seeds)
    return last[key]


def train_trials(sweep: Sweep) -> None:
    """Trains trials until none waits."""
    last: dict[Any, Experiment] = {}
    while (trial := sweep.take()) is not None:
        accuracy = None
        try:
            if trial.user_attrs.get("deaths", 0) >= MAX_DEATHS:
                raise InputError(f"its process died {MAX_DEATHS} times")
            accuracy = _train(sweep, trial, last)
            state, outcome = TrialState.COMPLETE, f"validation accuracy {accuracy:.4f}"
        except optuna.TrialPruned as pruned:
            state, outcome = TrialState.PRUNED, f"pruned {pruned}"
        except InputError as error:
            state, outcome = TrialState.FAIL, f"failed ({error})"
        trial.set_user_attr("outcome", f"{name_of(trial.params)}: {outcome}")
        sweep.study.tell(trial, accuracy, state)
        folder = sweep.out / RUNS / trial.user_attrs.get("folder", "")
        for seed in sweep.seeds:
            remove_checkpoints(folder / f"seed{seed}")


def _train(sweep: Sweep, trial: optuna.Trial, last: dict[Any, Experiment]) -> float:
    """Trains or resumes the runs of a trial; returns their validation accuracy."""
    dataset, parent = sweep.dataset, multiprocessing.parent_process()
    config = make_config(trial.params, sweep.given, dataset)
    folders = run_folders(sweep.out, config, dataset, sweep.seeds, anywhere=True)
    trial.set_user_attr("folder", folders[sweep.seeds[0]].parent.name)
    events = train_runs(config, dataset, folders, prepare_runs=partial(_prepare, last))
    with contextlib.closing(events):
        for event in events:
            if parent and not parent.is_alive():  # that of a task on Ray is not known
                os._exit(1)
            if isinstance(event, Epoch):
                epoch = event.records[0].epoch
                accuracy = statistics.fmean(r.val_accuracy or 0 for r in event.records)
                reported = sweep.trials()[trial.number].intermediate_values
                if epoch not in reported:  # of the first seed, with `patience`
                    trial.report(accuracy, epoch)
                if epoch != config.epochs and trial.should_prune():
                    raise optuna.TrialPruned(f"{accuracy:.4f}")
    records = [read_json(RunRecord, path / RECORD) for path in folders.values()]
    return statistics.fmean(map(validation_accuracy, records))


def work(sweep: Sweep) -> None:
    """Starts JAX in a process, with a share of an accelerator, and trains trials."""
    if not sweep.trials(TrialState.WAITING):  # others were faster
        return
    if sweep.gpus:
        memory = f"{0.75 * min(sweep.gpus, 1):.3f}"
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", memory)
    os.environ["NPROC"] = str(sweep.cores)  # threads of XLA:CPU
    start_jax(**sweep.machine)
    train_trials(sweep)


def _work_here(sweep: Sweep, worker: int) -> None:
    """Works in a process of this machine, with its share of the cores."""
    for received in {*SIGNALS} - {signal.SIGTERM}:  # they reach all of a terminal
        signal.signal(received, signal.SIG_IGN)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        first = worker * sweep.cores % len(cores)
        os.sched_setaffinity(0, cores[first : first + sweep.cores])
    work(sweep)


@contextlib.contextmanager
def start_processes(sweep: Sweep, workers: int) -> Iterator[Callable[[], bool]]:
    """Starts workers on this machine; yields a function: whether one still works."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_work_here, args=(sweep, number), daemon=True)
        for number in range(workers)
    ]
    for process in processes:
        process.start()

    def working() -> bool:
        alive = any(process.is_alive() for process in processes)
        if any((process.exitcode or 0) > 0 for process in processes):
            raise InputError("a worker ended with an error, see above")
        return alive

    try:
        yield working
    finally:
        for process in processes:  # what they have written can be resumed
            process.kill()
            process.join()


@contextlib.contextmanager
def start_on_ray(sweep: Sweep, address: str) -> Iterator[Callable[[], bool]]:
    """Starts workers as tasks on Ray, as many as fit its nodes, as above."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # It would start every worker by `uv run`, which needs the network and a lock file.
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    import ray

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
    task: Any = ray.remote(work).options(
        num_cpus=sweep.cores,
        num_gpus=sweep.gpus,
        max_retries=0,
        scheduling_strategy="SPREAD",
    )

    def working() -> bool:
        for ended in ray.wait(tasks, num_returns=len(tasks), timeout=0)[0]:
            tasks.remove(ended)
            try:
                ray.get(ended)
            except ray.exceptions.RayTaskError:
                raise
            except ray.exceptions.RayError:  # its process or its node died
                pass
        return bool(tasks)

    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(
            node.get("CPU", 0) >= sweep.cores and node.get("GPU", 0) >= sweep.gpus
            for node in nodes
        ):  # Ray would wait for one
            raise InputError(
                f"no node of the Ray cluster has --cpus_per_trial={sweep.cores} and "
                f"--gpus_per_trial={sweep.gpus:g}; give less, or start larger nodes"
            )
        shared = ray.put(sweep)
        # A task for each trial: later nodes take those that still wait.
        tasks = [task.remote(shared) for _ in sweep.trials(TrialState.WAITING)]
        yield working
    finally:
        ray.shutdown()  # also ends the tasks that run
