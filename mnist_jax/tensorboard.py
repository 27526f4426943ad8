"""A run's numbers by epoch, written as TensorBoard reads them."""

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

from mnist_jax.errors import InputError
from mnist_jax.files import cannot_write
from mnist_jax.records import EpochRecord


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
    folder: Path, train_images: int
) -> Iterator[Callable[[EpochRecord], None]]:
    """Opens an event file and yields the function that writes an epoch into it.

    The file is begun with the first epoch and follows within about a second, so that a
    run can be watched: `loss` and `accuracy`, each `/training` and, where there is one,
    `/validation`, and `images_per_second`, with the epoch as the step.

    Args:
        folder: the run directory; TensorBoard names the run after it.
        train_images: what an epoch trains on, for the images per second.

    Raises:
        InputError: the file cannot be written.
    """
    from tensorboardX import SummaryWriter  # optional, and slow to import

    with contextlib.ExitStack() as stack:
        writer = None

        def write(epoch: EpochRecord) -> None:
            nonlocal writer
            try:
                if writer is None:
                    writer = stack.enter_context(
                        SummaryWriter(str(folder), flush_secs=1)
                    )
                for tag, value in (
                    ("loss/training", epoch.loss),
                    ("loss/validation", epoch.val_loss),
                    ("accuracy/training", epoch.accuracy),
                    ("accuracy/validation", epoch.val_accuracy),
                    ("images_per_second", train_images / epoch.train_seconds),
                ):
                    if value is not None:
                        writer.add_scalar(tag, value, epoch.epoch)
            except OSError as error:
                raise cannot_write(folder, error) from error

        yield write
