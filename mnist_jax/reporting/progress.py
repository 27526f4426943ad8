"""Prints the progress of training."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from mnist_jax.models.networks import count_params
from mnist_jax.records.schema import EpochRecord, RunRecord
from mnist_jax.training.fit import Epoch, Progress, Result
from mnist_jax.training.prepare import Experiment
from mnist_jax.training.runs import Events, Started

_HEADER = "epoch   loss    acc   val loss  val acc  train s  images/s    ETA s"


def _header(experiment: Experiment) -> str:
    """Formats the network, the data and the devices of a run, and the table header."""
    dataset, mesh = experiment.dataset, experiment.programs.mesh
    parameters = count_params(experiment.model, dataset.shapes.image)
    devices = f"{mesh.size} {mesh.devices.flat[0].platform} device"
    devices += "s" if mesh.size > 1 else ""
    together = f", {experiment.seeds} seeds together" if experiment.seeds > 1 else ""
    cached = " (cached)" if experiment.compile_cached else ""
    sizes = {name: f"{len(split.labels):,}" for name, split in dataset.splits().items()}
    how = ""
    if slow := experiment.programs.slow_in_loops:
        how = (
            "an epoch is a Python loop over compiled steps: within a compiled loop, "
            f"XLA's code for {' and '.join(slow)} is slow\n"
        )
    return (
        f"{experiment.config.name}: {parameters:,} parameters, {devices}{together}, "
        f"compiled in {experiment.compile_seconds:.1f} s{cached}\n"
        f"{dataset.name}: {sizes['train']} training, {sizes.get('validation', 0)} "
        f"validation, {sizes['test']} test images\n{how}{_HEADER}"
    )


def _row(experiment: Experiment, records: Sequence[EpochRecord]) -> str:
    """Formats an epoch: metrics are means over seeds, seconds are for all seeds."""
    values = np.array([dataclasses.astuple(record) for record in records], float)
    mean = EpochRecord(*values.mean(axis=0))  # NaN without validation
    epoch, epochs, seeds = records[0].epoch, experiment.config.epochs, len(records)
    seconds = mean.train_seconds * seeds
    images_per_second = len(experiment.dataset.train.labels) * seeds / seconds
    eta = (epochs - epoch) * (seconds + mean.eval_seconds * seeds)
    row = (
        f"{epoch:2d}/{epochs:<2d} {mean.loss:7.4f} {mean.accuracy:.4f}  "
        f"{mean.val_loss:8.4f} {mean.val_accuracy:8.4f} {seconds:8.2f} "
        f"{images_per_second:9,.0f} {eta:8.1f}"
    )
    return row.replace("nan", "  -")


def _ending(record: RunRecord) -> str:
    """Formats the results of a run."""
    kept, averaged = "", ""
    if record.tta_accuracy is not None:
        averaged = f" ({record.tta_accuracy:.4f} averaged over shifts)"
    if record.best_epoch is not None:
        kept = f", parameters of epoch {record.best_epoch} of {len(record.epochs)}"
    return (
        f"seed {record.config.seed}: test accuracy {record.test_accuracy:.4f}"
        f"{averaged}, loss {record.test_loss:.4f} ({record.test_images:,} images)"
        f"{kept}; {record.total_seconds:.1f} s total"
    )


def follow(
    events: Events,
    quiet: bool = False,
    check_stopped: Callable[[], None] = lambda: None,
) -> Experiment | None:
    """Trains to the end, printing progress, and stops training when requested.

    A row is printed after each epoch. On a terminal, a progress bar is updated within
    an epoch.

    Args:
        events: as `train_runs` yields them.
        quiet: print final results only.
        check_stopped: called between the events; raises to stop training.

    Returns:
        The experiment trained last; None if all runs were finished.
    """
    experiment: Any = None
    bar = tqdm(
        disable=quiet or None,  # None shows the bar on a terminal only
        file=sys.stderr,
        leave=False,
        delay=1e-3,  # any delay: otherwise an empty bar is shown at once
        bar_format="{percentage:3.0f}%|{bar:20}| {desc}",
    )
    with contextlib.closing(events):  # releases the locks
        for event in events:
            line: str | None = None
            match event:
                case str():
                    line = event
                case Started():
                    experiment, line = event.experiment, _header(event.experiment)
                case Progress():
                    bar.total, bar.n = event.steps, event.step
                    bar.set_description_str(
                        f"epoch {event.epoch}, loss {event.loss:.4f}, "
                        f"accuracy {event.accuracy:.4f}, "
                        f"{event.images_per_second:,.0f} images/s, "
                        f"{event.seconds_left:.0f} s left"
                    )
                case Epoch():
                    bar.clear()
                    line = _row(experiment, event.records)
                case Result():
                    print(_ending(event.record), flush=True)
                    continue  # the other seeds' results follow at once
            if line and not quiet:
                print(line, flush=True)
            check_stopped()
    return experiment
