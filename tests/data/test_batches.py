"""The order of the images in an epoch."""

import numpy as np
import pytest

from mnist_jax.data.batches import epoch_indices


@pytest.mark.parametrize(
    ("size", "batch_size"), [(1, 1), (10, 3), (12, 3), (5, 8), (1000, 128)]
)
def test_an_epoch_has_every_index_once_and_pads_the_end(size, batch_size):
    indices = epoch_indices(0, 0, size, batch_size)
    assert indices.dtype == np.int32
    assert indices.shape == (-(-size // batch_size), batch_size)
    flat = indices.reshape(-1)
    assert sorted(flat[:size].tolist()) == list(range(size))
    assert (flat[size:] == -1).all()


def test_epochs_differ_and_do_not_depend_on_earlier_ones():
    orders = {
        (seed, epoch): epoch_indices(seed, epoch, 200, 50).tobytes()
        for seed in (0, 1, 2**64 - 1)
        for epoch in (0, 1, 2)
    }
    assert len(set(orders.values())) == 9
    assert epoch_indices(1, 2, 200, 50).tobytes() == orders[1, 2]
    # Fixed, so that a recorded seed gives the same order after a NumPy update.
    assert epoch_indices(0, 1, 8, 4).tolist() == [
        [5, 3, 7, 2],
        [4, 1, 0, 6],
    ]


def test_the_order_of_an_epoch_is_uniform():
    firsts = [epoch_indices(0, epoch, 10, 10)[0, 0] for epoch in range(2000)]
    counts = np.bincount(firsts, minlength=10)
    # Chi-squared with 9 degrees of freedom exceeds 27.9 once in a thousand.
    assert ((counts - 200) ** 2 / 200).sum() < 27.9
