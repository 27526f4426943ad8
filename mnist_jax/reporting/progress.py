"""Prints the progress of training."""

import itertools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from mnist_jax.config import TrainConfig
from mnist_jax.models.networks import count_params
from mnist_jax.records.schema import EpochRecord, RunRecord
from mnist_jax.training.fit import Callbacks, Progress
from mnist_jax.training.prepare import Experiment
from mnist_jax.training.runs import Observer

_HEADER = "epoch   loss    acc   val loss  val acc  train s  images/s    ETA s"

# Between progress lines without a terminal. A chunk takes about a second.
_CHUNKS_PER_LINE = 30


def _announce(experiment: Experiment) -> None:
    """Prints the network, the data and the devices of a run, and the table header."""
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
    print(
        f"{config.name}: {parameters:,} parameters, {devices}{together}, "
        f"compiled in {experiment.compile_seconds:.1f} s{cached}\n"
        f"{dataset.name}: {len(dataset.train.labels):,} training, {validation:,} "
        f"validation, {len(dataset.test.labels):,} test images\n{how}{_HEADER}",
        flush=True,
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


class ProgressPrinter(Observer):
    """Prints the progress of training, and stops training when requested.

    It never stops between the last chunk of an epoch and the epoch's checkpoint.
    """

    def __init__(
        self,
        quiet: bool = False,
        check_stopped: Callable[[], None] = lambda: None,
    ) -> None:
        """Creates a printer.

        Args:
            quiet: print final results only.
            check_stopped: called after each chunk and epoch; raises to stop training.
        """
        self.quiet, self._check_stopped = quiet, check_stopped

    def check_stopped(self) -> None:
        """Raises if the program should end."""
        self._check_stopped()

    def report(self, message: str) -> None:
        """Prints a line."""
        print(message, flush=True)

    def compiling(self, config: TrainConfig) -> None:
        """Prints that a network is being compiled, which can take several seconds."""
        if not self.quiet:
            print(f"{config.name}: compiling ...", flush=True)

    def training(
        self, experiment: Experiment, folders: Mapping[int, Path]
    ) -> Callbacks:
        """Prints the header of a run and returns callbacks that print its progress.

        They print a row after each epoch. Within an epoch they update a progress bar on
        a terminal, or print a line about twice a minute elsewhere.
        """
        if not self.quiet:
            _announce(experiment)
        # disable=None shows the bar on a terminal only; without a console, as in a
        # windowed application, there is no stderr.
        bar = tqdm(
            disable=True if self.quiet or sys.stderr is None else None,
            file=sys.stderr,
            leave=False,
            delay=1e-3,  # any delay: otherwise an empty bar is shown at once
            bar_format="{percentage:3.0f}%|{bar:20}| {desc}",
        )
        chunks = itertools.count(1)

        def on_chunk(progress: Progress) -> None:
            if progress.step == progress.steps:
                return  # the epoch's row follows
            if not self.quiet:
                _show(progress, bar, next(chunks))
            self.check_stopped()

        def on_epoch(records: Sequence[EpochRecord]) -> None:
            if not self.quiet:
                bar.clear()
                print(_row(experiment, records), flush=True)
            self.check_stopped()

        return Callbacks(on_epoch, on_chunk)

    def finished(self, record: RunRecord) -> None:
        """Prints the results of a run."""
        kept, averaged = "", ""
        if record.tta_accuracy is not None:
            averaged = f" ({record.tta_accuracy:.4f} averaged over shifts)"
        if record.best_epoch is not None:
            kept = f", parameters of epoch {record.best_epoch} of {len(record.epochs)}"
        print(
            f"seed {record.config.seed}: test accuracy {record.test_accuracy:.4f}"
            f"{averaged}, "
            f"loss {record.test_loss:.4f} ({record.test_images:,} images){kept}; "
            f"{record.total_seconds:.1f} s total",
            flush=True,
        )


def _show(progress: Progress, bar: tqdm, number: int) -> None:
    """Shows the progress of an epoch after chunk `number` of the run."""
    text = (
        f"loss {progress.loss:.4f}, accuracy {progress.accuracy:.4f}, "
        f"{progress.images_per_second:,.0f} images/s, "
        f"{progress.seconds_left:.0f} s left"
    )
    if not bar.disable:
        bar.total, bar.n = progress.steps, progress.step
        bar.set_description_str(f"epoch {progress.epoch}, {text}")
    elif number % _CHUNKS_PER_LINE == 0:
        percent = 100 * progress.step // progress.steps
        print(f"epoch {progress.epoch}, {percent}%: {text}", flush=True)
