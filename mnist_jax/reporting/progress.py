"""Prints the progress of training."""

import contextlib
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from tqdm import tqdm

from mnist_jax.models.networks import count_params
from mnist_jax.records.schema import EpochRecord, RunRecord
from mnist_jax.training.fit import Epoch, Progress, Result
from mnist_jax.training.prepare import Experiment
from mnist_jax.training.runs import Events, Started

_HEADER = "epoch   loss    acc   val loss  val acc  train s  images/s    ETA s"


def _header(experiment: Experiment) -> str:
    """Formats the network, the data and the devices of a run, and the table header."""
    config, dataset = experiment.config, experiment.dataset
    validation = len(dataset.validation.labels) if dataset.validation else 0
    cached = " (cached)" if experiment.compile_cached else ""
    together = f", {experiment.seeds} seeds together" if experiment.seeds > 1 else ""
    mesh = experiment.programs.mesh
    plural = "s" if mesh.size > 1 else ""
    devices = f"{mesh.size} {mesh.devices.flat[0].platform} device{plural}"
    parameters = count_params(experiment.model, dataset.shapes.image)
    how = ""
    if slow := experiment.programs.slow_in_loops:
        how = (
            "an epoch is a Python loop over compiled steps: within a compiled loop, "
            f"XLA's code for {' and '.join(slow)} is slow\n"
        )
    return (
        f"{config.name}: {parameters:,} parameters, {devices}{together}, "
        f"compiled in {experiment.compile_seconds:.1f} s{cached}\n"
        f"{dataset.name}: {len(dataset.train.labels):,} training, {validation:,} "
        f"validation, {len(dataset.test.labels):,} test images\n{how}{_HEADER}"
    )


def _mean(records: Sequence[EpochRecord], field: str) -> float:
    return statistics.mean(getattr(record, field) for record in records)


def _row(experiment: Experiment, records: Sequence[EpochRecord]) -> str:
    """Formats an epoch: metrics are means over seeds, seconds are for all seeds."""
    epochs, size = experiment.config.epochs, len(experiment.dataset.train.labels)
    seeds, first = len(records), records[0]
    validation = f"{'-':>8} {'-':>8}"
    if first.val_loss is not None:
        means = _mean(records, "val_loss"), _mean(records, "val_accuracy")
        validation = f"{means[0]:8.4f} {means[1]:8.4f}"
    seconds = first.train_seconds * seeds
    eta = (epochs - first.epoch) * (seconds + first.eval_seconds * seeds)
    return (
        f"{first.epoch:2d}/{epochs:<2d} {_mean(records, 'loss'):7.4f} "
        f"{_mean(records, 'accuracy'):.4f}  {validation} {seconds:8.2f} "
        f"{size * seeds / seconds:9,.0f} {eta:8.1f}"
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
                    _show(event, bar)
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


def _show(progress: Progress, bar: tqdm) -> None:
    """Updates the progress bar."""
    bar.total, bar.n = progress.steps, progress.step
    bar.set_description_str(
        f"epoch {progress.epoch}, loss {progress.loss:.4f}, accuracy "
        f"{progress.accuracy:.4f}, {progress.images_per_second:,.0f} images/s, "
        f"{progress.seconds_left:.0f} s left"
    )
