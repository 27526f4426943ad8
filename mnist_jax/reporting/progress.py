"""What a person sees while a run goes on."""

import itertools
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tqdm import tqdm

from mnist_jax.config import TrainConfig
from mnist_jax.models.networks import count_params
from mnist_jax.records.schema import EpochRecord, RunRecord
from mnist_jax.training.experiment import Experiment
from mnist_jax.training.fit import Progress

_HEADER = "epoch   loss    acc   val loss  val acc  train s  images/s   left s"


# A part of an epoch is about a second: in a file, one line in this many is enough.
_PARTS_PER_LINE = 30


class Reports(NamedTuple):
    """What `fit` is to call while it runs."""

    on_epoch: Callable[[Sequence[EpochRecord]], None]
    on_part: Callable[[Progress], None]


def announce_compiling(config: TrainConfig, quiet: bool = False) -> None:
    """Prints what is being compiled, since that can take some seconds."""
    if not quiet:
        print(f"{config.model}: compiling ...", flush=True)


def _announce(experiment: Experiment) -> None:
    """Prints what is about to be trained, on what."""
    config, dataset = experiment.config, experiment.dataset
    sizes = [len(dataset.train.labels), len(dataset.test.labels)]
    validation = len(dataset.validation.labels) if dataset.validation else 0
    cached = " (cached)" if experiment.compile_cached else ""
    together = f", {experiment.seeds} seeds together" if experiment.seeds > 1 else ""
    print(
        f"{config.model}: {count_params(experiment.model):,} parameters, "
        f"{dataset.name} {sizes[0]:,} train / {validation:,} validation / "
        f"{sizes[1]:,} test images, {experiment.mesh.size} "
        f"{experiment.mesh.devices.flat[0].platform} devices{together}, "
        f"compiled in {experiment.compile_seconds:.1f} s{cached}\n{_HEADER}",
        flush=True,
    )


def _mean(records: Sequence[EpochRecord], field: str) -> float:
    return statistics.mean(getattr(record, field) for record in records)


def _row(experiment: Experiment, records: Sequence[EpochRecord]) -> str:
    """Writes an epoch: means over the seeds, seconds of all of them together."""
    epochs, size = experiment.config.epochs, len(experiment.dataset.train.labels)
    seeds, first = len(records), records[0]
    validation = f"{'-':>8} {'-':>8}"
    if first.val_loss is not None:
        means = _mean(records, "val_loss"), _mean(records, "val_accuracy")
        validation = f"{means[0]:8.4f} {means[1]:8.4f}"
    seconds = first.train_seconds * seeds
    left = (epochs - first.epoch) * (seconds + first.eval_seconds * seeds)
    return (
        f"{first.epoch:2d}/{epochs:<2d} {_mean(records, 'loss'):7.4f} "
        f"{_mean(records, 'accuracy'):.4f}  {validation} {seconds:8.2f} "
        f"{size * seeds / seconds:9,.0f} {left:8.1f}"
    )


def report_training(experiment: Experiment, quiet: bool = False) -> Reports:
    """Announces a run and returns what prints its progress.

    That is a row after each epoch and, within it, a live line on a terminal, a plain
    line about twice a minute elsewhere. When quiet, nothing.
    """
    if quiet:
        return Reports(lambda records: None, lambda progress: None)
    _announce(experiment)
    # It writes to a terminal only, into one line that it clears.
    bar = tqdm(
        disable=None,
        file=sys.stderr,
        leave=False,
        delay=1e-3,  # any: else it shows an empty bar at once
        bar_format="{percentage:3.0f}%|{bar:20}| {desc}",
    )
    parts = itertools.count(1)

    def on_part(progress: Progress) -> None:
        if progress.step == progress.steps:
            return  # the epoch's row follows
        text = (
            f"loss {progress.loss:.4f}, accuracy {progress.accuracy:.4f}, "
            f"{progress.images_per_second:,.0f} images/s, "
            f"{progress.seconds_left:.0f} s left"
        )
        if not bar.disable:
            bar.total, bar.n = progress.steps, progress.step
            bar.set_description_str(f"epoch {progress.epoch}, {text}")
        elif next(parts) % _PARTS_PER_LINE == 0:
            percent = 100 * progress.step // progress.steps
            print(f"epoch {progress.epoch}, {percent} %: {text}", flush=True)

    def on_epoch(records: Sequence[EpochRecord]) -> None:
        bar.clear()
        print(_row(experiment, records), flush=True)

    return Reports(on_epoch, on_part)


def stop_after(reports: Reports, check_stopped: Callable[[], None]) -> Reports:
    """Returns reports after which a run ends if it is to.

    It never does so between the last part of an epoch and the epoch's checkpoint.

    Args:
        reports: what `report_training` returned.
        check_stopped: raises if the run is to end.
    """

    def on_epoch(records: Sequence[EpochRecord]) -> None:
        reports.on_epoch(records)
        check_stopped()

    def on_part(progress: Progress) -> None:
        reports.on_part(progress)
        if progress.step < progress.steps:
            check_stopped()

    return Reports(on_epoch, on_part)


def result(record: RunRecord) -> None:
    """Prints what a run ended with."""
    print(
        f"seed {record.config['seed']}: test accuracy {record.test_accuracy:.4f}, loss "
        f"{record.test_loss:.4f} ({record.test_images:,} images); "
        f"{record.total_seconds:.1f} s in all",
        flush=True,
    )
