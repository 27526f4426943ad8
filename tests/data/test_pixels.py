"""Pixel scalings and statistics, compared with plain NumPy."""

import jax
import numpy as np
import pytest

from mnist_jax.config import PIXELS
from mnist_jax.data.pixels import Preprocess, pixel_statistics

PICTURES = np.random.RandomState(0).randint(0, 256, (3, 28, 28)).astype(np.uint8)
PICTURES[0, :, 5] = 0  # a column with norm zero
PICTURES[1] = 0


def plain_scaling(images, pixels):
    """Scales by the definitions, in float64."""
    values = images.astype(np.float64)
    norms = np.sqrt((values**2).sum(axis=1, keepdims=True))  # of each column
    return {
        "raw": values,
        "scaled": values / 255,
        "standardized": (values / 255 - 0.13) / 0.31,
        "l2": values / np.where(norms == 0, 1, norms),
    }[pixels]


@pytest.mark.parametrize("pixels", PIXELS)
def test_scalings_equal_plain_numpy(pixels):
    expected = plain_scaling(PICTURES, pixels)
    scale = Preprocess(pixels, mean=0.13, std=0.31)
    for got in (scale(PICTURES), jax.jit(lambda images: scale(images))(PICTURES)):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(scale(PICTURES[2]), expected[2], rtol=1e-6, atol=1e-6)
    stacked = scale(PICTURES[:, None])
    np.testing.assert_allclose(stacked[:, 0], expected, rtol=1e-6, atol=1e-6)


def test_pixel_statistics_equal_plain_numpy():
    images = np.random.RandomState(1).randint(0, 256, (3000, 28, 28)).astype(np.uint8)
    for some in (images, images[:1], images[::7]):
        mean, std = pixel_statistics(some)
        assert isinstance(mean, float) and isinstance(std, float)
        assert mean == pytest.approx((some / 255).mean(), rel=1e-12)
        assert std == pytest.approx((some / 255).std(), rel=1e-12)
    assert pixel_statistics(np.full((2, 28, 28), 51, np.uint8)) == (0.2, 1.0)
