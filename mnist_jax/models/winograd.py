"""Winograd convolution with 3x3 kernels: the matrices, and overlapping tiles.

In one dimension, a convolution of m + 2 inputs d with three weights k to m outputs y
takes m + 2 multiplications instead of 3 m (Lavin and Gray, arXiv:1509.09308):

    y = outputs @ ((kernel @ k) * (inputs @ d))

with constant matrices (`Transforms`). In two dimensions they are applied along rows and
then along columns, and an m x m tile takes (m + 2)^2 multiplications; with channels
each of these is a matrix product.
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
# and 1 times 1e-7 for the plain convolution (32 channels, float32).
_POINTS = (0.0, 1.0, -1.0, 2.0, -0.5, -2.0)
LARGEST_TILE = len(_POINTS) - 1


class Transforms(NamedTuple):
    """The transform matrices for tiles of m outputs."""

    inputs: np.ndarray  # [m+2,m+2]
    kernel: np.ndarray  # [m+2,3]
    outputs: np.ndarray  # [m,m+2]


class Tiling(NamedTuple):
    """How the outputs are split into tiles; the last tiles may extend past the edge."""

    tile: int  # side of a tile, m
    rows: int  # tiles from top to bottom
    columns: int


@functools.cache
def make_transforms(tile: int) -> Transforms:
    """Makes the matrices for tiles of 2 to 5 outputs with the Toom-Cook method.

    >>> inputs, kernel, outputs = make_transforms(2)
    >>> d, k = np.array([1, 2, 3, 4]), np.array([1, 0, 2])
    >>> outputs @ ((kernel @ k) * (inputs @ d))
    array([ 7., 10.])
    """
    points = np.array(_POINTS[: tile + 1])
    inputs = np.zeros((tile + 2, tile + 2))
    kernel, outputs = np.zeros((tile + 2, 3)), np.zeros((tile, tile + 2))
    for index, point in enumerate(points):
        others = np.delete(points, index)
        inputs[index, :-1] = np.polynomial.polynomial.polyfromroots(others)
        kernel[index] = point ** np.arange(3) / np.prod(point - others)
        outputs[:, index] = point ** np.arange(tile)
    inputs[-1] = np.polynomial.polynomial.polyfromroots(points)
    kernel[-1, -1] = outputs[-1, -1] = 1
    return Transforms(inputs, kernel, outputs)


def choose_tiling(height: int, width: int) -> Tiling:
    """Returns the tiling of outputs with the fewest multiplications.

    Ties go to the smaller tile, which has smaller rounding errors.

    >>> choose_tiling(10, 10)
    Tiling(tile=5, rows=2, columns=2)
    """
    tilings = (
        Tiling(tile, -(-height // tile), -(-width // tile))
        for tile in range(2, LARGEST_TILE + 1)
    )
    return min(tilings, key=lambda t: t.rows * t.columns * (t.tile + 2) ** 2)


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


def extract_tiles(x: jax.Array, tile: int, count: int, axis: int) -> list[jax.Array]:
    """Returns the first, second, ... input of all tiles along an axis.

    Args:
        x: inputs.
        tile: outputs per tile, m.
        count: number of tiles.
        axis: axis of `x` to split into tiles.

    Returns:
        m + 2 arrays, with one index per tile along that axis.
    """
    x = pad_or_crop(x, tile * count + 2, axis)
    last = tile * (count - 1) + 1
    return [
        lax.slice_in_dim(x, start, start + last, tile, axis)
        for start in range(tile + 2)
    ]


def sum_tiles(tiles: jax.Array, length: int, axis: int) -> jax.Array:
    """Sums overlapping tiles; the gradient of `extract_tiles`.

    Args:
        tiles: gradients, with an axis of tiles and next to it the m + 2 inputs of each.
        length: length of the inputs' axis.
        axis: axis of the tiles, and of the inputs in the result.
    """
    count, inputs = tiles.shape[axis : axis + 2]
    tile = inputs - 2
    main = pad_or_crop(lax.slice_in_dim(tiles, 0, tile, axis=axis + 1), count + 1, axis)
    overlap = pad_or_crop(
        lax.slice_in_dim(tiles, tile, inputs, axis=axis + 1), tile, axis + 1
    )
    pads = [(0, 0, 0)] * tiles.ndim
    pads[axis] = (1, 0, 0)  # the overlap belongs to the next tile
    joined = main + lax.pad(overlap, jnp.zeros((), tiles.dtype), pads)
    shape = (*tiles.shape[:axis], (count + 1) * tile, *tiles.shape[axis + 2 :])
    return pad_or_crop(joined.reshape(shape), length, axis)
