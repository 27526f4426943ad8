"""Trials of a sweep: settings with their seeds, trained into run directories.

A trial has a folder with the run directory of each seed and a `trial.json`. It has
ended if every seed has a record, or if `trial.json` says that it was pruned or failed.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import logging

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import DivergedError, InputError
from mnist_jax.records.schema import (
    SCHEMA_VERSION,
    EpochRecord,
    RunRecord,
    read_json,
    read_jsonl,
    write_json,
)
from mnist_jax.training.checkpoints import remove_checkpoints
from mnist_jax.training.experiment import Experiment, change_learning_rate, prepare
from mnist_jax.training.fit import Callbacks
from mnist_jax.training.run_dir import METRICS, run_keys
from mnist_jax.training.study import RUNS, digest
from mnist_jax.training.sweep import Observer, Plan, train_runs

TRIAL = "trial.json"
STARTED, FINISHED, PRUNED, FAILED = STATES = ("started", "finished", "pruned", "failed")

# Takes an epoch and the validation accuracy after it; returns whether to stop there.
OnEpoch = Callable[[int, float], bool]


@dataclasses.dataclass(frozen=True)
class TrialRecord:
    """What a trial's folder says about it."""

    settings: dict[str, str]  # the model and the varied flags, as on the command line
    seeds: list[int]
    checksum: str  # of the data
    state: str = STARTED
    reason: str = ""  # why it failed
    schema_version: int = SCHEMA_VERSION


class Trial(NamedTuple):
    """Settings to train with some seeds."""

    settings: Mapping[str, str]
    config: TrainConfig  # its seed is ignored
    folder: Path
    seeds: Sequence[int]
    checksum: str  # of the data

    @property
    def folders(self) -> dict[int, Path]:
        """The run directory of each seed."""
        return {seed: self.folder / f"seed{seed}" for seed in self.seeds}

    @property
    def name(self) -> str:
        """The settings, as in `model=mlp learning_rate=0.01`."""
        return " ".join(f"{name}={value}" for name, value in self.settings.items())


class TrialResult(NamedTuple):
    """How a trial ended."""

    state: str  # one of `STATES`, except `STARTED`
    reason: str = ""


class _Pruned(Exception):
    """The trial is to be stopped."""


def trial_folder(out: Path, config: TrainConfig, dataset: Dataset) -> Path:
    """Returns the folder of a config's trial in the folder of a sweep.

    Its name ends in a digest of the config and the data. Machine and versions are not
    included, since the trials of one sweep may run on several machines.
    """
    [key] = run_keys(config, dataset, [0]).values()
    return out / RUNS / f"{config.name}-{digest(key)}"


def find_trials(out: Path) -> dict[Path, TrialRecord]:
    """Returns the trials in the folder of a sweep, by folder.

    A damaged `trial.json` is skipped with a warning.
    """
    trials = {}
    for path in sorted((out / RUNS).glob(f"*/{TRIAL}")):
        try:
            trials[path.parent] = read_json(TrialRecord, path, "delete it")
        except InputError as error:
            logging.warning("%s", error)
    return trials


def write_trial(trial: Trial, state: str = STARTED, reason: str = "") -> None:
    """Writes a trial's `trial.json`; raises as `write_json`."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    seeds = sorted(trial.seeds)
    record = TrialRecord(dict(trial.settings), seeds, trial.checksum, state, reason)
    write_json(trial.folder / TRIAL, record)


def validation_accuracy(record: RunRecord) -> float:
    """Returns the validation accuracy of the parameters that a run kept."""
    epoch = record.best_epoch or len(record.epochs)
    accuracy = record.epochs[epoch - 1].val_accuracy
    assert accuracy is not None  # a sweep needs a validation set
    return accuracy


def read_epochs(folders: Mapping[int, Path]) -> list[list[EpochRecord]]:
    """Returns the epochs that each seed has trained so far."""
    return [read_jsonl(EpochRecord, path / METRICS) for path in folders.values()]


def read_curve(folders: Mapping[int, Path]) -> list[float]:
    """Returns a trial's validation accuracy after each epoch, the mean over seeds."""
    curves = [
        [epoch.val_accuracy for epoch in epochs if epoch.val_accuracy is not None]
        for epochs in read_epochs(folders)
    ]
    return [statistics.fmean(values) for values in zip(*curves, strict=False)]


class _TrialObserver(Observer):
    """Reports the epochs of a trial, and raises `_Pruned` if it is to stop."""

    def __init__(
        self,
        on_epoch: OnEpoch,
        check_stopped: Callable[[], None],
        notify: Callable[[str], None],
    ) -> None:
        self._on_epoch, self._notify = on_epoch, notify
        self._check_stopped = check_stopped

    def report(self, message: str) -> None:
        """Passes on why a trial waits, and where it resumes."""
        if "already recorded" not in message:
            self._notify(message)

    def check_stopped(self) -> None:
        """Raises if the sweep should end."""
        self._check_stopped()

    def training(
        self, experiment: Experiment, folders: Mapping[int, Path]
    ) -> Callbacks:
        """Returns callbacks that report each epoch."""
        last = experiment.config.epochs

        def on_epoch(records: Sequence[EpochRecord]) -> None:
            accuracies = [r.val_accuracy for r in records if r.val_accuracy is not None]
            epoch = records[0].epoch
            if self._on_epoch(epoch, statistics.fmean(accuracies)) and epoch != last:
                raise _Pruned
            self.check_stopped()

        return Callbacks(on_epoch, lambda progress: self.check_stopped())


class TrialRunner:
    """Trains trials in one process, which compiles once for all learning rates."""

    def __init__(self, dataset: Dataset) -> None:
        """Creates a runner; `dataset` is as returned by `load_dataset`."""
        self._dataset = dataset
        self._prepared: tuple[TrainConfig, int, Experiment] | None = None

    def train(
        self,
        trial: Trial,
        on_epoch: OnEpoch,
        check_stopped: Callable[[], None] = lambda: None,
        notify: Callable[[str], None] = lambda message: None,
    ) -> TrialResult:
        """Trains the missing seeds of a trial, resuming unfinished ones.

        Args:
            trial: what to train.
            on_epoch: called after each epoch that is trained now.
            check_stopped: called between chunks of an epoch; raises to stop.
            notify: called with a message for the user.

        Raises:
            InputError: a file cannot be written.
        """
        plan = Plan(trial.name, trial.config, trial.folders, trial.folder)
        observer = _TrialObserver(on_epoch, check_stopped, notify)
        try:
            train_runs(plan, self._dataset, observer, self._prepare)
        except _Pruned:
            result = TrialResult(PRUNED)
        except DivergedError as error:
            result = TrialResult(FAILED, str(error))
        else:
            return TrialResult(FINISHED)
        for folder in trial.folders.values():
            remove_checkpoints(folder)
        return result

    def _prepare(self, config: TrainConfig, dataset: Dataset, seeds: int) -> Experiment:
        """Reuses the last experiment if only its learning rate differs."""
        key = dataclasses.replace(config, learning_rate=1.0, seed=0)
        if self._prepared is None or self._prepared[:2] != (key, seeds):
            self._prepared = None  # frees its arrays before there are new ones
            self._prepared = key, seeds, prepare(config, dataset, seeds)
            return self._prepared[2]
        return change_learning_rate(self._prepared[2], config)
