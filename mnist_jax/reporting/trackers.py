"""Sends runs to an experiment tracker: config, metrics, results, end."""

import contextlib
import contextvars
import dataclasses
import importlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from mnist_jax.config import TrainConfig
from mnist_jax.records.environment import check_packages
from mnist_jax.records.schema import EpochRecord, RunRecord
from mnist_jax.reporting.progress import ProgressPrinter
from mnist_jax.training.fit import Callbacks
from mnist_jax.training.prepare import Experiment

PROJECT = "mnist_jax"  # of all runs in trackio and wandb
_PACKAGES = {"tensorboard": "tensorboardX", "trackio": "trackio", "wandb": "wandb"}
TRACKERS = tuple(_PACKAGES)

Scalars = Mapping[str, float]


def check_tracker(tracker: str) -> None:
    """Raises InputError if a tracker's package is not installed."""
    check_packages(f"--track={tracker}", [_PACKAGES[tracker]], tracker)


class _TensorBoardRun:
    """An event file in a run directory, created with the first numbers.

    A resumed run writes a further file, and TensorBoard drops the steps of the earlier
    ones that it repeats. Without tensorboardX's SummaryWriter: its thread ends at a
    full disk, and then the calls block.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder, self._config = folder, config
        self._file: Any = None

    def log(self, scalars: Scalars, step: int) -> None:
        # Optional, and slow to import.
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import scalar, text

        events = [Event(summary=scalar(name, value)) for name, value in scalars.items()]
        if self._file is None:
            # Seconds and step: a run resumed at once needs another name.
            name = f"events.out.tfevents.{time.time():.0f}.from{step}"
            self._file = RecordWriter(str(self._folder / name))
            config = f"```json\n{json.dumps(self._config, indent=2)}\n```"
            events = [
                Event(file_version="brain.Event:2"),
                Event(session_log=SessionLog(status=SessionLog.START)),
                Event(summary=text("config", config)),
                *events,
            ]
        for event in events:
            event.wall_time, event.step = time.time(), step
            self._file.write(event.SerializeToString())
        self._file.flush()

    def finish(self) -> None:
        if self._file is not None:
            self._file.close()


def start_run(tracker: str, name: str, folder: Path, config: Mapping[str, Any]) -> Any:
    """Starts a run in a tracker.

    Args:
        tracker: one of `TRACKERS`.
        name: of the run. TensorBoard takes the name of the folder.
        folder: the run directory.
        config: what to record as the run's config, as JSON values.

    Returns:
        An object with `log(scalars, step=epoch)` and `finish()`.
    """
    if tracker == "tensorboard":
        return _TensorBoardRun(folder, config)
    options: dict[str, Any] = dict(project=PROJECT, name=name, config=config)
    if tracker == "wandb":  # by default it finishes the other runs of the process
        options["reinit"] = "create_new"
    # trackio finishes the run that it finds in the context variables.
    start = importlib.import_module(_PACKAGES[tracker]).init
    return contextvars.Context().run(start, **options)


def scalars_of(record: EpochRecord | RunRecord) -> Scalars:
    """Returns the numbers of a record, such as `epoch/loss` or `run/test_accuracy`."""
    kind = "epoch" if isinstance(record, EpochRecord) else "run"
    return {
        f"{kind}/{name}": value
        for name, value in vars(record).items()
        if type(value) in (int, float)
    }


def _config(config: TrainConfig, seed: int, dataset: str) -> Mapping[str, Any]:
    """Returns a run's config as JSON values, with the dataset that it is trained on."""
    config = dataclasses.replace(config, seed=seed)
    return json.loads(json.dumps({**dataclasses.asdict(config), "dataset": dataset}))


class TrackingPrinter(ProgressPrinter):
    """Prints the progress of training and sends it to a tracker, a run per seed.

    Numbers are sent between two epochs, when no clock of an epoch runs.
    """

    def __init__(
        self,
        tracker: str,
        root: Path,
        quiet: bool = False,
        check_stopped: Callable[[], None] = lambda: None,
    ) -> None:
        """Creates a printer.

        Args:
            tracker: one of `TRACKERS`; see `check_tracker`.
            root: the directory of the runs, whose name the tracker shows.
            quiet: as for `ProgressPrinter`, like `check_stopped`.
            check_stopped: called after each chunk and epoch; raises to stop training.
        """
        super().__init__(quiet, check_stopped)
        self._tracker, self._root = tracker, root
        self._runs: dict[int, Any] = {}  # by seed

    def _name(self, folder: Path) -> str:
        """Returns the name of a run, such as cnn0, or cnn0-seed1 with several seeds."""
        name = self._root.resolve().name
        return name if folder == self._root else f"{name}-{folder.name}"

    @contextlib.contextmanager
    def _failure_is_a_warning(self, seed: int) -> Iterator[None]:
        """Warns if the tracker fails, and sends it nothing more of that seed."""
        try:
            yield
        except Exception as error:  # whatever the tracker raises
            if run := self._runs.pop(seed, None):
                with contextlib.suppress(Exception):
                    run.finish()
            logging.warning(
                "--track=%s failed (%s: %s); nothing more of seed %d is sent",
                self._tracker,
                type(error).__name__,
                error,
                seed,
            )

    def training(
        self, experiment: Experiment, folders: Mapping[int, Path]
    ) -> Callbacks:
        """Starts a run per seed; otherwise as `ProgressPrinter.training`."""
        callbacks = super().training(experiment, folders)
        dataset = experiment.dataset
        for seed, folder in folders.items():
            config = _config(experiment.config, seed, dataset.name)
            with self._failure_is_a_warning(seed):
                name = self._name(folder)
                self._runs[seed] = start_run(self._tracker, name, folder, config)

        def on_epoch(records: Sequence[EpochRecord]) -> None:
            for seed, record in zip(folders, records, strict=True):
                if run := self._runs.get(seed):
                    with self._failure_is_a_warning(seed):
                        run.log(scalars_of(record), step=record.epoch)
            callbacks.on_epoch(records)

        return callbacks._replace(on_epoch=on_epoch)

    def finished(self, record: RunRecord) -> None:
        """Prints the results of a run, sends them and ends the tracker's run."""
        super().finished(record)
        if run := self._runs.pop(record.config.seed, None):
            with self._failure_is_a_warning(record.config.seed):
                run.log(scalars_of(record), step=len(record.epochs))
                run.finish()

    def close(self) -> None:
        """Ends the tracker's runs that were stopped."""
        for seed in list(self._runs):
            with self._failure_is_a_warning(seed):
                self._runs.pop(seed).finish()
