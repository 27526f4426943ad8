"""What a person sees while a run goes on."""

from collections.abc import Callable

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
    print(
        f"{config.model}: {count_params(experiment.model):,} parameters, "
        f"{dataset.name} {sizes[0]:,} train / {validation:,} validation / "
        f"{sizes[1]:,} test images, {experiment.mesh.size} "
        f"{experiment.mesh.devices.flat[0].platform} devices, "
        f"compiled in {experiment.compile_seconds:.1f} s",
        flush=True,
    )


def epoch_rows(experiment: Experiment) -> Callable[[EpochRecord], None]:
    """Prints the header now and returns a function that prints each epoch's row."""
    epochs, size = experiment.config.epochs, len(experiment.dataset.train.labels)
    print(_HEADER, flush=True)

    def row(record: EpochRecord) -> None:
        validation = f"{'-':>8} {'-':>8}"
        if record.val_loss is not None:
            validation = f"{record.val_loss:8.4f} {record.val_accuracy:8.4f}"
        left = (epochs - record.epoch) * (record.train_seconds + record.eval_seconds)
        print(
            f"{record.epoch:2d}/{epochs:<2d} {record.loss:7.4f} {record.accuracy:.4f}  "
            f"{validation} {record.train_seconds:8.2f} "
            f"{size / record.train_seconds:9,.0f} {left:8.1f}",
            flush=True,
        )

    return row


def result(record: RunRecord) -> None:
    """Prints what a run ended with."""
    print(
        f"test accuracy {record.test_accuracy:.4f}, loss {record.test_loss:.4f} "
        f"({record.test_images:,} images); {record.total_seconds:.1f} s in all",
        flush=True,
    )
