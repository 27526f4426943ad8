"""Sends runs to an experiment tracker: config, metrics, results and pictures."""

import contextlib
import contextvars
import dataclasses
import importlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from absl import logging

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.records.environment import check_packages
from mnist_jax.records.files import write_error
from mnist_jax.records.schema import EpochRecord, RunRecord
from mnist_jax.reporting.progress import ProgressPrinter
from mnist_jax.training.experiment import Experiment
from mnist_jax.training.fit import Callbacks
from mnist_jax.training.run_dir import TrainedRun, load_run

PROJECT = "mnist_jax"  # of all runs in trackio and wandb
_PACKAGES = {"tensorboard": "tensorboardX", "trackio": "trackio", "wandb": "wandb"}
TRACKERS = tuple(_PACKAGES)
# A second run of the same process is another run; by default wandb finishes the first.
_INIT_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "trackio": {},
    "wandb": {"reinit": "create_new"},
}

Scalars = Mapping[str, float]


def check_tracker(tracker: str) -> None:
    """Checks before any work is done that a tracker can be used.

    Raises:
        InputError: its package is not installed or broken, or it needs a login.
    """
    package = _PACKAGES[tracker]
    check_packages(f"--track={tracker}", [package], tracker)
    try:
        module = importlib.import_module(package)
    except Exception as error:  # whatever a broken installation raises
        raise InputError(
            f"--track={tracker} cannot import {package} ({type(error).__name__}: "
            f"{error}); repair its installation, or omit the flag"
        ) from error
    if tracker != "wandb" or module.setup().settings.mode != "online":
        return
    try:
        reason = "" if module.login(prompt=False) else "there is no API key"
    except Exception as error:  # the key is refused, or the host cannot be reached
        reason = str(error)
    if reason:
        raise InputError(
            f"--track=wandb cannot log in ({reason}); run `wandb login`, or set "
            "WANDB_MODE=offline to keep the run on this machine"
        )


class TrackerRun(Protocol):
    """A run in a tracker."""

    def log(self, scalars: Scalars, step: int) -> None:
        """Adds numbers by name; the step is the epoch."""

    def log_picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Adds a picture `[H,W,3] uint8`."""

    def finish(self) -> None:
        """Writes what is left and closes the run."""


class _TensorBoardRun:
    """An event file in a run directory, created with the first numbers.

    A resumed run writes a further file, and TensorBoard drops the steps of the earlier
    ones that it repeats.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder, self._config = folder, config
        self._writer: Any = None

    def _open(self, step: int) -> Any:
        from tensorboardX import SummaryWriter  # optional, and slow to import

        try:
            writer = SummaryWriter(
                str(self._folder),
                purge_step=step,
                flush_secs=1,  # so that runs can be watched
                # Names hold seconds: a run resumed at once needs another one.
                filename_suffix=f".from{step}",
            )
        except OSError as error:
            raise write_error(self._folder, error) from error
        text = json.dumps(self._config, indent=2)
        writer.add_text("config", f"```json\n{text}\n```", step)
        return writer

    def log(self, scalars: Scalars, step: int) -> None:
        if self._writer is None:
            self._writer = self._open(step)
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def log_picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()


class _ServiceRun:
    """A run of trackio or wandb, whose calls are the same."""

    def __init__(self, tracker: str, name: str, config: Mapping[str, Any]) -> None:
        self._module = importlib.import_module(_PACKAGES[tracker])
        options: dict[str, Any] = dict(project=PROJECT, name=name, config=config)
        try:
            # trackio finishes the run that it finds in the context variables.
            self._run = contextvars.Context().run(
                self._module.init, **options, **_INIT_OPTIONS[tracker]
            )
        except Exception as error:
            raise InputError(
                f"--track={tracker} cannot start the run {name} ({error}); remove the "
                "cause or omit the flag"
            ) from error

    def log(self, scalars: Scalars, step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def log_picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        self._run.log({name: self._module.Image(pixels)}, step=step)

    def finish(self) -> None:
        self._run.finish()


def start_run(
    tracker: str, name: str, folder: Path, config: Mapping[str, Any]
) -> TrackerRun:
    """Starts a run in a tracker.

    Args:
        tracker: one of `TRACKERS`.
        name: of the run. TensorBoard takes the name of the folder.
        folder: the run directory.
        config: what to record as the run's config, as JSON values.

    Raises:
        InputError: the tracker cannot start it.
    """
    if tracker == "tensorboard":
        return _TensorBoardRun(folder, config)
    return _ServiceRun(tracker, name, config)


def epoch_scalars(epoch: EpochRecord, train_images: int) -> Scalars:
    """Returns the metrics of an epoch; those of validation only if there are any."""
    return _known(
        {
            "loss/training": epoch.loss,
            "loss/validation": epoch.val_loss,
            "accuracy/training": epoch.accuracy,
            "accuracy/validation": epoch.val_accuracy,
            "images_per_second": train_images / epoch.train_seconds,
        }
    )


def final_scalars(record: RunRecord) -> Scalars:
    """Returns the results of a finished run."""
    names = "parameters", "compile_seconds", "steady_epoch_seconds", "total_seconds"
    return _known(
        {
            "loss/test": record.test_loss,
            "accuracy/test": record.test_accuracy,
            "accuracy/test_averaged_over_shifts": record.tta_accuracy,
            "best_epoch": record.best_epoch,
            **{f"final/{name}": getattr(record, name) for name in names},
        }
    )


def _known(values: Mapping[str, float | None]) -> Scalars:
    return {name: value for name, value in values.items() if value is not None}


def _config(config: TrainConfig, seed: int, dataset: str) -> Mapping[str, Any]:
    """Returns a run's config as JSON values, with the dataset that it is trained on."""
    config = dataclasses.replace(config, seed=seed)
    return json.loads(json.dumps({**dataclasses.asdict(config), "dataset": dataset}))


def _pictures(run: TrainedRun, dataset: Dataset) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the report's pictures of a network, `[H,W,3] uint8`, by name."""
    # Imported here because they are needed only after training.
    from PIL import Image

    from mnist_jax.reporting.pictures import detail_pictures
    from mnist_jax.reporting.predictions import run_details

    details = run_details(run, dataset.test)
    for picture in detail_pictures(
        run.config.name, run.config.seed, [details], dataset.name
    ):
        file = io.BytesIO()
        picture.draw(picture.heading).savefig(file, dpi=100, format="png")
        yield picture.name, np.asarray(Image.open(file).convert("RGB"))


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
        self._open: dict[int, tuple[TrackerRun, Path]] = {}  # by seed
        self._dataset: Dataset | None = None

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
            self._open.pop(seed, None)
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
        self._dataset = dataset = experiment.dataset
        for seed, folder in folders.items():
            config = _config(experiment.config, seed, dataset.name)
            run = start_run(self._tracker, self._name(folder), folder, config)
            self._open[seed] = run, folder
        size = len(dataset.train.labels)

        def on_epoch(records: Sequence[EpochRecord]) -> None:
            for seed, record in zip(folders, records, strict=True):
                if seed in self._open:
                    with self._failure_is_a_warning(seed):
                        run, _ = self._open[seed]
                        run.log(epoch_scalars(record, size), record.epoch)
            callbacks.on_epoch(records)

        return callbacks._replace(on_epoch=on_epoch)

    def finished(self, record: RunRecord) -> None:
        """Prints the results of a run, and adds them and the pictures to the tracker.

        A tracker that fails now does not make the trained run a failure.
        """
        super().finished(record)
        seed, last = record.config.seed, len(record.epochs)
        if seed not in self._open:  # its tracker failed during training
            return
        run, folder = self._open.pop(seed)
        assert self._dataset is not None
        with self._failure_is_a_warning(seed):
            run.log(final_scalars(record), last)
            for name, pixels in _pictures(load_run(folder), self._dataset):
                run.log_picture(name, pixels, last)
            run.finish()

    def close(self) -> None:
        """Closes the runs that were stopped."""
        for seed, (run, _) in list(self._open.items()):
            with self._failure_is_a_warning(seed):
                run.finish()
        self._open.clear()
