"""What is printed while a run trains."""

import itertools
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from mnist_jax.config import TrainConfig
from mnist_jax.models.networks import count_params
from mnist_jax.records.schema import EpochRecord, RunRecord
from mnist_jax.training.experiment import Experiment
from mnist_jax.training.fit import Callbacks, Progress

OnEpoch = Callable[[Sequence[EpochRecord]], None]

_HEADER = "epoch   loss    acc   val loss  val acc  train s  images/s   left s"


# A chunk of an epoch is about a second: in a file, one line in this many is enough.
_CHUNKS_PER_LINE = 30


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
        f"{sizes[1]:,} test images, {experiment.programs.mesh.size} "
        f"{experiment.programs.mesh.devices.flat[0].platform} devices{together}, "
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


class ProgressPrinter:
    """Prints the progress of training, and ends it once the program is to stop.

    It never ends between the last chunk of an epoch and the epoch's checkpoint.
    """

    def __init__(
        self,
        quiet: bool = False,
        check_stopped: Callable[[], None] = lambda: None,
        write_epochs: Callable[[Sequence[Path], int], OnEpoch] | None = None,
    ) -> None:
        """Creates a printer.

        Args:
            quiet: print results only.
            check_stopped: raises if the program is to end.
            write_epochs: given the run directories and the number of training images,
                returns what is to be called with the records of each epoch too.
        """
        self.quiet, self.check_stopped = quiet, check_stopped
        self.write_epochs = write_epochs

    def report(self, message: str) -> None:
        """Prints a line."""
        print(message, flush=True)

    def compiling(self, config: TrainConfig) -> None:
        """Prints what is being compiled, since that can take some seconds."""
        if not self.quiet:
            print(f"{config.model}: compiling ...", flush=True)

    def training(
        self, experiment: Experiment, folders: Mapping[int, Path]
    ) -> Callbacks:
        """Announces a run and returns what prints its progress.

        That is a row after each epoch and, within it, a live line on a terminal, a
        plain line about twice a minute elsewhere. When quiet, nothing.
        """
        if not self.quiet:
            _announce(experiment)
        write: OnEpoch = lambda records: None  # noqa: E731
        if self.write_epochs is not None:
            size = len(experiment.dataset.train.labels)
            write = self.write_epochs(list(folders.values()), size)
        # It writes to a terminal only, into one line that it clears.
        bar = tqdm(
            disable=True if self.quiet else None,
            file=sys.stderr,
            leave=False,
            delay=1e-3,  # any: else it shows an empty bar at once
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
            write(records)
            if not self.quiet:
                bar.clear()
                print(_row(experiment, records), flush=True)
            self.check_stopped()

        return Callbacks(on_epoch, on_chunk)

    def finished(self, record: RunRecord) -> None:
        """Prints what a run ended with."""
        print(
            f"seed {record.config.seed}: test accuracy {record.test_accuracy:.4f}, "
            f"loss {record.test_loss:.4f} ({record.test_images:,} images); "
            f"{record.total_seconds:.1f} s in all",
            flush=True,
        )


def _show(progress: Progress, bar: tqdm, number: int) -> None:
    """Shows how far an epoch is, after the chunk of this number."""
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
        print(f"epoch {progress.epoch}, {percent} %: {text}", flush=True)
