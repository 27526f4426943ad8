"""What a person sees while a run goes on."""

import statistics
from collections.abc import Callable, Sequence

from mnist_jax.config import TrainConfig
from mnist_jax.fit import Experiment
from mnist_jax.models import count_params
from mnist_jax.records import EpochRecord, RunRecord

_HEADER = "epoch   loss    acc   val loss  val acc  train s  images/s   left s"


def announce_compiling(config: TrainConfig) -> None:
    """Prints what is being compiled, since that can take some seconds."""
    print(f"{config.model}: compiling ...", flush=True)


def announce(experiment: Experiment) -> None:
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
        f"compiled in {experiment.compile_seconds:.1f} s{cached}",
        flush=True,
    )


def _mean(records: Sequence[EpochRecord], field: str) -> float:
    return statistics.mean(getattr(record, field) for record in records)


def epoch_rows(experiment: Experiment) -> Callable[[Sequence[EpochRecord]], None]:
    """Prints the header now and returns a function that prints each epoch's row.

    Of several seeds the row has the means; seconds are those of all together.
    """
    epochs, size = experiment.config.epochs, len(experiment.dataset.train.labels)
    print(_HEADER, flush=True)

    def row(records: Sequence[EpochRecord]) -> None:
        seeds, first = len(records), records[0]
        validation = f"{'-':>8} {'-':>8}"
        if first.val_loss is not None:
            means = _mean(records, "val_loss"), _mean(records, "val_accuracy")
            validation = f"{means[0]:8.4f} {means[1]:8.4f}"
        seconds = first.train_seconds * seeds
        left = (epochs - first.epoch) * (seconds + first.eval_seconds * seeds)
        print(
            f"{first.epoch:2d}/{epochs:<2d} {_mean(records, 'loss'):7.4f} "
            f"{_mean(records, 'accuracy'):.4f}  {validation} {seconds:8.2f} "
            f"{size * seeds / seconds:9,.0f} {left:8.1f}",
            flush=True,
        )

    return row


def result(record: RunRecord) -> None:
    """Prints what a run ended with."""
    print(
        f"seed {record.config['seed']}: test accuracy {record.test_accuracy:.4f}, loss "
        f"{record.test_loss:.4f} ({record.test_images:,} images); "
        f"{record.total_seconds:.1f} s in all",
        flush=True,
    )
