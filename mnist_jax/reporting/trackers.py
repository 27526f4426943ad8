"""Sends runs to an experiment tracker: config, metrics, results, end."""

import contextlib
import contextvars
import dataclasses
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from mnist_jax.records.environment import check_packages
from mnist_jax.records.schema import EpochRecord, RunRecord
from mnist_jax.training.fit import Epoch, Result
from mnist_jax.training.runs import Event, Events, Started

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
    ones that it repeats.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder, self._config = str(folder), config
        self._writer: Any = None

    def log(self, scalars: Scalars, step: int) -> None:
        if self._writer is None:
            from tensorboardX import SummaryWriter  # optional, and slow to import

            # A run resumed within a second needs another name.
            options = dict(purge_step=step, filename_suffix=f".from{step}")
            self._writer = SummaryWriter(self._folder, **options)
            config = f"```json\n{json.dumps(self._config, indent=2)}\n```"
            self._writer.add_text("config", config, step)
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self) -> None:
        if self._writer is not None:
            self._writer.close()


def start_run(tracker: str, name: str, folder: Path, config: Mapping[str, Any]) -> Any:
    """Starts a run: an object with `log(scalars, step=epoch)` and `finish()`.

    The config has JSON values. TensorBoard takes the name of the folder.
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


def _send(event: Event, runs: dict[int, Any], tracker: str, root: Path) -> None:
    """Sends what an event has of each seed; `runs`, by seed, are those started."""
    if isinstance(event, Started):
        experiment = event.experiment
        for seed, folder in event.folders.items():
            config = vars(dataclasses.replace(experiment.config, seed=seed))
            config = {**config, "dataset": experiment.dataset.name}
            name = root.resolve().name
            name += "" if folder == root else f"-{folder.name}"
            config = json.loads(json.dumps(config))
            runs[seed] = start_run(tracker, name, folder, config)
    elif isinstance(event, Epoch):
        for run, record in zip(runs.values(), event.records, strict=True):
            run.log(scalars_of(record), step=record.epoch)
    elif isinstance(event, Result):
        seed, last = event.record.config.seed, len(event.record.epochs)
        runs[seed].log(scalars_of(event.record), step=last)
        runs.pop(seed).finish()


def track(events: Events, tracker: str, root: Path) -> Events:
    """Passes events on, and sends each seed's config and numbers to a tracker.

    They are sent between two epochs, when no clock of an epoch runs. If the tracker
    fails, that is a warning, and it gets nothing more. It shows the name of `root`, the
    directory of the runs.
    """
    runs: dict[int, Any] = {}
    failed = False
    try:
        with contextlib.closing(events):
            for event in events:
                try:
                    if not failed:
                        _send(event, runs, tracker, root)
                except Exception as error:  # whatever the tracker raises
                    failed = True
                    failure = (
                        f"--track={tracker} failed ({type(error).__name__}: {error})"
                    )
                    logging.warning("%s; nothing more is sent", failure)
                yield event
    finally:
        for run in runs.values():  # that were stopped
            with contextlib.suppress(Exception):
                run.finish()
