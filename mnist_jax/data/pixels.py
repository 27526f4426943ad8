"""Preprocessing of pixels: from uint8 in the files to the network's float32."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Split


class Preprocess(NamedTuple):
    """A pixel scaling as a callable; equal instances share compiled programs.

    Args:
        pixels: "scaled": x/255; "standardized": (x/255 - mean) / std; "raw": x;
            "l2": each column of an image divided by its L2 norm over the rows, or by 1
            if the norm is 0.
        mean: mean of the training pixels divided by 255, see `pixel_statistics`; only
            for "standardized", like `std`.
        std: their standard deviation.
    """

    pixels: str
    mean: float | None = None
    std: float | None = None

    def __call__(self, images: jax.Array | np.ndarray) -> jax.Array:
        """Scales images `[...,H,W] uint8` to `float32`, inside the jitted step."""
        values = jnp.asarray(images).astype(jnp.float32)
        if self.pixels == "raw":
            return values
        if self.pixels == "scaled":
            return values / 255.0
        if self.pixels == "standardized":
            assert self.mean is not None and self.std is not None
            return (values / 255.0 - self.mean) / self.std
        norms = jnp.sqrt(jnp.sum(values * values, axis=-2, keepdims=True))
        return values / jnp.where(norms == 0.0, 1.0, norms)


def make_preprocess(config: TrainConfig, train: Split) -> Preprocess:
    """Returns the pixel scaling of a config for a training set."""
    if config.pixels != "standardized":  # counting MNIST's pixels takes 0.09 s
        return Preprocess(config.pixels)
    return Preprocess(config.pixels, *pixel_statistics(train.images))


def pixel_statistics(images: np.ndarray) -> tuple[float, float]:
    """Returns the mean and standard deviation of `[N,H,W] uint8` pixels / 255.

    If all pixels are equal, the standard deviation is returned as 1, to divide by.
    """
    # In chunks, since bincount makes a copy of eight bytes per pixel.
    chunks = np.array_split(images.reshape(-1), max(1, images.size // 2**20))
    counts = sum(np.bincount(chunk, minlength=256) for chunk in chunks)
    values = np.arange(256) / 255.0
    mean = np.average(values, weights=counts)
    variance = np.average((values - mean) ** 2, weights=counts)
    return float(mean), math.sqrt(variance) or 1.0
