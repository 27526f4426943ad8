"""Winograd's convolution with kernels of three: matrices, tiles and their overlap.

A convolution in one direction turns m + 2 inputs d and three weights k into m outputs y
by m + 2 multiplications, where the definition has 3 m (Lavin and Gray,
arXiv:1509.09308):

    y = outputs @ ((kernel @ k) * (inputs @ d))

with matrices of constants (`Transforms`). In two directions they are applied along rows
and then along columns, and an m x m tile takes (m + 2)^2 multiplications; with channels
each of these is a product of matrices.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Where the polynomials behind the matrices are evaluated, besides infinity: small, few
# powers apart. Outputs' errors are 2, 6, 7 and 17 times 1e-7 of their size (both root
# mean squares) for tiles of 2 to 5, the definition's 1 times 1e-7 (32 channels,
# float32).
_POINTS = (0.0, 1.0, -1.0, 2.0, -0.5, -2.0)
LARGEST_TILE = len(_POINTS) - 1


class Transforms(NamedTuple):
    """The matrices for tiles of m outputs."""

    inputs: np.ndarray  # [m+2,m+2]
    kernel: np.ndarray  # [m+2,3]
    outputs: np.ndarray  # [m,m+2]


class Tiling(NamedTuple):
    """How outputs are extracted into tiles; the last ones may reach beyond them."""

    tile: int  # side of a tile, m
    rows: int  # tiles from top to bottom
    columns: int


@functools.cache
def make_transforms(tile: int) -> Transforms:
    """Makes the matrices for tiles of 2 to 5 outputs, by Toom and Cook's method.

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

    Of equal ones that with the smaller tiles, which round less.

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
    """Multiplies a matrix `[p,q]` with q arrays, its p rows becoming a new axis.

    Written as a sum of products with a vector, since that is one loop; a list of sums
    is a loop each, and takes several times as long to compile.
    """
    shape = [1] * (arrays[0].ndim + 1)
    shape[axis] = len(matrix)
    terms = [
        jnp.asarray(column, array.dtype).reshape(shape) * jnp.expand_dims(array, axis)
        for column, array in zip(matrix.T, arrays, strict=True)
    ]
    return sum(terms[1:], terms[0])


def pad_or_crop(x: jax.Array, length: int, axis: int) -> jax.Array:
    """Cuts an axis at the end, or adds zeros there."""
    pads = [(0, 0, 0)] * x.ndim
    pads[axis] = (0, length - x.shape[axis], 0)
    return lax.pad(x, jnp.zeros((), x.dtype), pads)


def extract_tiles(x: jax.Array, tile: int, count: int, axis: int) -> list[jax.Array]:
    """Returns the first, second, ... input of all the tiles along an axis.

    Args:
        x: inputs.
        tile: outputs of a tile, m.
        count: tiles.
        axis: where the inputs lie in a row.

    Returns:
        m + 2 arrays, in which that axis has one index for each tile.
    """
    x = pad_or_crop(x, tile * count + 2, axis)
    last = tile * (count - 1) + 1
    return [
        lax.slice_in_dim(x, start, start + last, tile, axis)
        for start in range(tile + 2)
    ]


def sum_tiles(tiles: jax.Array, length: int, axis: int) -> jax.Array:
    """Adds up overlapping tiles: the gradient of what `extract_tiles` extracted.

    Args:
        tiles: with an axis of tiles, and the m + 2 inputs of each on the next one.
        length: of the axis of inputs.
        axis: of the tiles, and of the inputs in what is returned.
    """
    count, inputs = tiles.shape[axis : axis + 2]
    tile = inputs - 2
    main = pad_or_crop(lax.slice_in_dim(tiles, 0, tile, axis=axis + 1), count + 1, axis)
    over = pad_or_crop(
        lax.slice_in_dim(tiles, tile, inputs, axis=axis + 1), tile, axis + 1
    )
    pads = [(0, 0, 0)] * tiles.ndim
    pads[axis] = (1, 0, 0)  # they belong to the next tile
    joined = main + lax.pad(over, jnp.zeros((), tiles.dtype), pads)
    shape = (*tiles.shape[:axis], (count + 1) * tile, *tiles.shape[axis + 2 :])
    return pad_or_crop(joined.reshape(shape), length, axis)
