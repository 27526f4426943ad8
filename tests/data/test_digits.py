"""scikit-learn's digits in MNIST's format."""

import numpy as np
import pytest
from scipy import ndimage

from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.digits import upsample_digits

pytestmark = pytest.mark.usefixtures("isolated_folders")


def test_digits_look_like_mnist_and_are_split_by_class():
    dataset = load_dataset("digits")
    assert (dataset.name, dataset.note) == ("digits", "")
    for split, size in ((dataset.train, 1437), (dataset.test, 360)):
        assert split.images.shape == (size, 28, 28) and split.labels.shape == (size,)
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        assert split.images.max() == 255
        margin = split.images.copy()
        margin[:, 4:24, 4:24] = 0
        assert not margin.any()
        share = np.bincount(split.labels) / size
        np.testing.assert_allclose(share, 0.1, atol=0.005)
    # The bytes and the split are the same on every machine.
    assert dataset.checksum == (
        "8c53aad5376d21b37973b270939e344b592d8d09dc8d52cd3c20cc0be9851367"
    )
    both = np.concatenate([dataset.train.images, dataset.test.images])
    assert len(np.unique(both.reshape(1797, -1), axis=0)) == 1797


def test_digits_are_upsampled_bilinearly():
    digits = np.random.RandomState(0).randint(0, 17, (5, 8, 8)).astype(np.uint8)
    expected = [
        ndimage.zoom(digit * (255 / 16), 2.5, order=1, grid_mode=True, mode="nearest")
        for digit in digits
    ]
    got = upsample_digits(digits)[:, 4:24, 4:24]
    np.testing.assert_allclose(got, expected, atol=0.5 + 1e-6)
