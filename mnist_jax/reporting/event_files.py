"""Writes the metrics of each epoch to TensorBoard event files."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mnist_jax.records.environment import check_packages
from mnist_jax.records.files import write_error
from mnist_jax.records.schema import EpochRecord


def check_tensorboard() -> None:
    """Raises InputError if tensorboardX, which writes event files, is missing."""
    check_packages("--tensorboard", ["tensorboardX"], "tensorboard")


@contextlib.contextmanager
def epoch_scalars(
    folders: Sequence[Path], train_images: int
) -> Iterator[Callable[[Sequence[EpochRecord]], None]]:
    """Yields a function that writes one epoch of every run to its event file.

    Writes `loss` and `accuracy`, each as `/training` and, with a validation set,
    `/validation`, and `images_per_second`; the step is the epoch. Files are created
    after the first epoch and flushed every second, so that runs can be watched live.
    A resumed run writes a further file, and TensorBoard drops the steps of the earlier
    ones that it repeats.

    Args:
        folders: the run directories; TensorBoard names the runs after them.
        train_images: number of training images per epoch.

    Raises:
        InputError: a file cannot be written.
    """
    from tensorboardX import SummaryWriter  # optional, and slow to import

    with contextlib.ExitStack() as stack:
        writers: list[SummaryWriter] = []

        def write(epochs: Sequence[EpochRecord]) -> None:
            for folder in folders[len(writers) :]:  # in the first epoch only
                first = epochs[0].epoch
                try:
                    writer = SummaryWriter(
                        str(folder),
                        purge_step=first,
                        flush_secs=1,
                        # Names hold seconds: a run resumed at once needs another one.
                        filename_suffix=f".from{first}",
                    )
                except OSError as error:
                    raise write_error(folder, error) from error
                writers.append(stack.enter_context(writer))
            for writer, epoch in zip(writers, epochs, strict=True):
                for tag, value in (
                    ("loss/training", epoch.loss),
                    ("loss/validation", epoch.val_loss),
                    ("accuracy/training", epoch.accuracy),
                    ("accuracy/validation", epoch.val_accuracy),
                    ("images_per_second", train_images / epoch.train_seconds),
                ):
                    if value is not None:
                        writer.add_scalar(tag, value, epoch.epoch)

        yield write
