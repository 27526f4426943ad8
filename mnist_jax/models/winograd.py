"""Winograd convolution: the matrices, and overlapping tiles.

In one dimension, a convolution of n = m + r - 1 inputs d with r weights k to m outputs
y takes n multiplications instead of r m (Lavin and Gray, arXiv:1509.09308):

    y = outputs @ ((kernel @ k) * (inputs @ d))

with constant matrices (`Transforms`). In two dimensions they are applied along rows and
then along columns, and an m x m tile takes n^2 multiplications; with channels each of
these is a matrix product.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# The interpolation points besides infinity: small and few powers of two apart. The
# relative RMS error of the outputs is 2, 6, 7 and 17 times 1e-7 for tiles of 2 to 5,
# and 1 times 1e-7 for the plain convolution (3x3 kernel, 32 channels, float32).
_POINTS = (0.0, 1.0, -1.0, 2.0, -0.5, -2.0)


class Transforms(NamedTuple):
    """The transform matrices for tiles of m outputs."""

    inputs: np.ndarray  # [n,n]
    kernel: np.ndarray  # [n,r]
    outputs: np.ndarray  # [m,n]


class Tiling(NamedTuple):
    """How the outputs are split into tiles; the last tiles may extend past the edge."""

    tile: int  # side of a tile, m
    rows: int  # tiles from top to bottom
    columns: int


@functools.cache
def make_transforms(tile: int, size: int) -> Transforms:
    """Makes the matrices for tiles of outputs and kernels of a size, by Toom and Cook.

    >>> inputs, kernel, outputs = make_transforms(2, 3)
    >>> d, k = np.array([1, 2, 3, 4]), np.array([1, 0, 2])
    >>> outputs @ ((kernel @ k) * (inputs @ d))
    array([ 7., 10.])
    """
    count = tile + size - 1
    points = np.array(_POINTS[: count - 1])
    inputs = np.zeros((count, count))
    kernel, outputs = np.zeros((count, size)), np.zeros((tile, count))
    for index, point in enumerate(points):
        others = np.delete(points, index)
        inputs[index, :-1] = np.polynomial.polynomial.polyfromroots(others)
        kernel[index] = point ** np.arange(size) / np.prod(point - others)
        outputs[:, index] = point ** np.arange(tile)
    inputs[-1] = np.polynomial.polynomial.polyfromroots(points)
    kernel[-1, -1] = outputs[-1, -1] = 1
    return Transforms(inputs, kernel, outputs)


def choose_tiling(height: int, width: int, size: int) -> Tiling:
    """Returns the tiling of outputs with the fewest multiplications.

    Ties go to the smaller tile, which has smaller rounding errors.

    >>> choose_tiling(10, 10, 3)
    Tiling(tile=5, rows=2, columns=2)
    """
    tilings = (
        Tiling(tile, -(-height // tile), -(-width // tile))
        for tile in range(2, len(_POINTS) + 3 - size)
    )
    return min(tilings, key=lambda t: t.rows * t.columns * (t.tile + size - 1) ** 2)


def combine(
    matrix: np.ndarray, arrays: Sequence[jax.Array], axis: int = 0
) -> jax.Array:
    """Multiplies a matrix `[p,q]` with q arrays; the p rows become a new axis.

    Written as a sum of column-by-array products, which compiles to one loop; p separate
    sums compile to a loop each and take several times as long to compile.
    """
    shape = [1] * (arrays[0].ndim + 1)
    shape[axis] = len(matrix)
    terms = [
        jnp.asarray(column, array.dtype).reshape(shape) * jnp.expand_dims(array, axis)
        for column, array in zip(matrix.T, arrays, strict=True)
    ]
    return sum(terms[1:], terms[0])


def pad_or_crop(x: jax.Array, length: int, axis: int) -> jax.Array:
    """Crops or zero-pads an axis at its end to a given length."""
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (0, length - x.shape[axis], 0)
    return lax.pad(x, jnp.zeros((), x.dtype), pads)


def extract_tiles(
    x: jax.Array, tile: int, count: int, size: int, axis: int
) -> list[jax.Array]:
    """Returns the first, second, ... input of all tiles along an axis.

    Args:
        x: inputs.
        tile: outputs per tile, m.
        count: number of tiles.
        size: of the kernel, r.
        axis: axis of `x` to split into tiles.

    Returns:
        n arrays, with one index per tile along that axis.
    """
    x = pad_or_crop(x, tile * count + size - 1, axis)
    last = tile * (count - 1) + 1
    return [
        lax.slice_in_dim(x, start, start + last, tile, axis)
        for start in range(tile + size - 1)
    ]


def sum_tiles(tiles: jax.Array, tile: int, length: int, axis: int) -> jax.Array:
    """Sums overlapping tiles; the gradient of `extract_tiles`.

    Args:
        tiles: gradients, with an axis of tiles and next to it the n inputs of each.
        tile: outputs per tile, m.
        length: length of the inputs' axis.
        axis: axis of the tiles, and of the inputs in the result.
    """
    count, inputs = tiles.shape[axis : axis + 2]
    shares = -(-inputs // tile)  # the tiles that share an input

    def share(index: int) -> jax.Array:  # the m inputs of the index-th next tile
        stop = min((index + 1) * tile, inputs)
        part = lax.slice_in_dim(tiles, index * tile, stop, axis=axis + 1)
        pads = [(0, 0, 0)] * tiles.ndim
        pads[axis] = (index, shares - 1 - index, 0)
        return lax.pad(
            pad_or_crop(part, tile, axis + 1), jnp.zeros((), tiles.dtype), pads
        )

    joined = sum(map(share, range(1, shares)), share(0))
    shape = *tiles.shape[:axis], (count + shares - 1) * tile, *tiles.shape[axis + 2 :]
    return pad_or_crop(joined.reshape(shape), length, axis)
