"""A run's numbers by epoch, written as TensorBoard reads them."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mnist_jax.errors import InputError
from mnist_jax.records.files import write_error
from mnist_jax.records.schema import EpochRecord


def check_tensorboard() -> None:
    """Makes sure that scalars can be written, before any work is done.

    Raises:
        InputError: tensorboardX is not installed.
    """
    if importlib.util.find_spec("tensorboardX") is None:
        raise InputError(
            "--tensorboard needs the package tensorboardX, which is not installed; "
            "install it with `pip install '.[tensorboard]'` or leave the flag out"
        )


@contextlib.contextmanager
def epoch_scalars(
    folders: Sequence[Path], train_images: int
) -> Iterator[Callable[[Sequence[EpochRecord]], None]]:
    """Opens an event file per run and yields the function that writes an epoch of each.

    The files are begun with the first epoch and follow within about a second, so that
    runs can be watched: `loss` and `accuracy`, each `/training` and, where there is
    one, `/validation`, and `images_per_second`, with the epoch as the step.

    Args:
        folders: the run directories; TensorBoard names the runs after them.
        train_images: what an epoch trains on, for the images per second.

    Raises:
        InputError: a file cannot be written.
    """
    from tensorboardX import SummaryWriter  # optional, and slow to import

    with contextlib.ExitStack() as stack:
        writers: list[SummaryWriter] = []

        def write(epochs: Sequence[EpochRecord]) -> None:
            for folder in folders[len(writers) :]:  # none but in the first epoch
                try:
                    writer = SummaryWriter(str(folder), flush_secs=1)
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
