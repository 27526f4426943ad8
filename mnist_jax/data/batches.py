"""The order of the training images in an epoch."""

import numpy as np


def epoch_indices(seed: int, epoch: int, size: int, batch_size: int) -> np.ndarray:
    """Returns the order of the training images in one epoch, one row per step.

    Each epoch is a new permutation that depends only on `seed` and `epoch`: epoch 7 can
    be computed without the first six.

    Args:
        seed: the seed of the run, `0..2**64-1`.
        epoch: index of the epoch, `0..2**64-1`.
        size: number of training images.
        batch_size: images per step.

    Returns:
        `[steps,batch_size] int32` with steps = ceil(size / batch_size): every index of
        `range(size)` once; the last row is padded with -1.
    """
    # Sorts 64 raw random bits per image, a stream that NumPy guarantees not to change;
    # it does not guarantee Generator.permutation. 0.8 ms for 60,000 images.
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    steps = -(-size // batch_size)
    indices = np.full(steps * batch_size, -1, np.int32)
    indices[:size] = np.argsort(bits)
    return indices.reshape(steps, batch_size)
