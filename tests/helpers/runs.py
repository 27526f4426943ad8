"""Small runs that can be stopped, and ways to damage their files."""

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mnist_jax.config import TrainConfig
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.types import Dataset
from mnist_jax.records.schema import RunRecord
from mnist_jax.training.checkpoints import Checkpoint
from mnist_jax.training.fit import Epoch, finish
from mnist_jax.training.prepare import Experiment, prepare
from mnist_jax.training.run_dir import METRICS, find_runs, run_keys
from mnist_jax.training.runs import Event, Events, Started, fit_into, plan

CONFIG = TrainConfig(dataset="digits", epochs=3, hidden=(16,), batch_size=256)


def flip_bit(path: Path) -> None:
    """Flips one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def follow_until(events: Events, stop: int | None = None) -> list[Event]:
    """Trains to the end, or until an epoch as a signal does; returns the events."""
    seen = []
    with contextlib.closing(events):
        for event in events:
            seen.append(event)
            if isinstance(event, Epoch) and event.records[0].epoch == stop:
                break
    return seen


def epochs_of(events: Iterable[Event]) -> list[tuple[list[int], int]]:
    """Returns the epochs that were run, each with the seeds trained together."""
    epochs, seeds = [], []
    for event in events:
        if isinstance(event, Started):
            seeds = list(event.folders)
        elif isinstance(event, Epoch):
            epochs.append((seeds, event.records[0].epoch))
    return epochs


def train_into(
    experiment: Experiment,
    folders: Mapping[int, Path],
    stop: int | None = None,
    **options: Any,
) -> list[RunRecord]:
    """Trains as `fit_into`, to the end or until an epoch; returns the records."""
    keys = run_keys(experiment.config, experiment.dataset, folders)
    options = {"checkpoint_every": 0} | options
    events = follow_until(fit_into(experiment, folders, keys, **options), stop)
    return [result.record for result in finish(events)]


_prepared: dict[tuple[TrainConfig, int, str], Experiment] = {}


def prepare_once(config: TrainConfig, dataset: Dataset, seeds: int = 1) -> Experiment:
    """Returns the result of `prepare`, cached for all tests of a process."""
    key = dataclasses.replace(config, seed=0), seeds, dataset.checksum
    if key not in _prepared:
        _prepared[key] = prepare(config, dataset, seeds)
    return dataclasses.replace(_prepared[key], config=config)


def stopped_run(
    digits: Dataset, folder: Path, config: TrainConfig = CONFIG
) -> Experiment:
    """Creates a run that stopped after the third of four epochs."""
    experiment = prepare_once(dataclasses.replace(config, epochs=4), digits)
    train_into(experiment, {0: folder}, 3, checkpoint_every=1)
    return experiment


def resumable(
    folders: Mapping[int, Path], config: TrainConfig
) -> tuple[bool, Checkpoint | None]:
    """Returns whether seeds on the digits are finished, else their checkpoint."""
    dataset = load_dataset("digits")
    keys = run_keys(config, dataset, folders)
    _, groups = plan(folders, keys)
    return not groups, groups[0][1] if groups else None


def outcome(record: RunRecord, folder: Path) -> tuple:
    """Returns the results that must not depend on stops: all except times."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    for line in lines:
        del line["train_seconds"], line["eval_seconds"]
    return record.params_sha256, record.test_accuracy, record.test_loss, lines


def outcomes(out: Path) -> list[tuple]:
    """Returns what the records of a results folder hold, except times."""
    return sorted(
        (
            run.config.seed,
            run.params_sha256,
            run.test_loss,
            run.test_accuracy,
            run.seeds_together,
            [(e.epoch, e.loss, e.val_loss) for e in run.epochs],
            run.system or run.config.model,
        )
        for run in find_runs(out).values()
    )
