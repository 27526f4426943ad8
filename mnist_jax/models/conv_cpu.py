"""Fast CPU implementation of convolution, bias, activation and max pooling.

Inside a `lax.scan`, XLA:CPU compiles the gradient of a convolution to a naive loop and
the gradient of `nn.max_pool` to a slow select-and-scatter. Here a stage consists of
matrix products and elementwise loops, in one of three algorithms (`_choose_algorithm`).
Two of them view the inputs as overlapping tiles, one tile per pooled output:

    tiles[p,q] [B,h,w,C] holds x[:, step * i + p, step * j + q], step = strides * pool
    phase (r,s) is the convolution's output at position (r,s) of each pooling window
    tap (k,l) of phase (r,s) reads tiles[strides * r + dilation * k, ... s ... l]

so outputs that pooling would drop are not computed. Winograd's tiles are larger and
independent of pooling. The layout is [B,H,W,C] throughout.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from mnist_jax.models.activations import ACTIVATIONS
from mnist_jax.models.winograd import (
    choose_tiling,
    combine,
    extract_tiles,
    make_transforms,
    pad_or_crop,
    sum_tiles,
)

Pair = tuple[int, ...]  # of rows and columns

_LARGEST_IN_CACHE = 10e6  # bytes of arrays; a stage with more runs in chunks
_CHUNK = 1e6  # bytes of a chunk's arrays


class _Stage(NamedTuple):
    """The static arguments of a stage."""

    strides: Pair
    activation: str
    pool: Pair
    dilation: Pair


def conv_pool(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    padding: Sequence[Pair],
    strides: Pair = (1, 1),
    dilation: Pair = (1, 1),
    activation: str = "linear",
    pool: Pair = (1, 1),
) -> jax.Array:
    """Convolves, adds the bias, applies the activation and max-pools.

    Matches `lax.conv_general_dilated`, bias, activation and `nn.max_pool` up to float32
    rounding, including gradients. Of equal maxima in a window, the first in row-major
    order gets the gradient, as in `nn.max_pool`. Pooling runs before bias and
    activation, with the same result: both are monotone and apply equally to a whole
    window. Only rounding can send the gradient to another position, by making unequal
    values equal or swapping them. In `nn.max_pool` this happens to values that the bias
    rounds to the same number or that both saturate tanh (where ReLU makes them equal,
    at zero, the gradient is zero).

    Args:
        x: inputs [B,H,W,C] float32.
        kernel: [k,l,C,D] float32.
        bias: [D] float32, or None.
        padding: zeros before and after the rows, and the columns; or rows to leave out.
        strides: of the convolution.
        dilation: distance of the kernel's taps.
        activation: "relu", "tanh" or "linear".
        pool: shape and strides of the pooling window, without padding.

    Returns:
        [B,h,w,D] float32.

    Example:
        >>> x, kernel = jnp.ones((2, 28, 28, 1)), jnp.ones((3, 3, 1, 8))
        >>> conv_pool(x, kernel, padding=[(0, 0)] * 2, pool=(2, 2)).shape
        (2, 13, 13, 8)
    """
    if any(map(any, padding)):
        pads = [(0, 0, 0), *((*pair, 0) for pair in padding), (0, 0, 0)]
        x = materialize(lambda x: pad(x, pads), x)
    if bias is None:
        bias = jnp.zeros(kernel.shape[3], kernel.dtype)
    return _conv_pool(x, kernel, bias, _Stage(strides, activation, pool, dilation))


def pad(x: jax.Array, pads: Any) -> jax.Array:
    """Pads with zeros of the inputs' dtype: 0.0 would be float64 under x64."""
    return lax.pad(x, x.dtype.type(0), list(map(tuple, pads)))


def _choose_algorithm(x: jax.Array, kernel: jax.Array, stage: _Stage) -> "_Algorithm":
    """Picks the fastest algorithm for a stage, by its time in a training step.

    Compared with patches, the direct algorithm took 1.3, 2.0 and 2.9 ms less per step
    with 8, 16 and 32 pooled features (one Zen 5 core, batch 64). Winograd took this
    fraction of the time of patches, forward and backward with 2x2 pooling (one Zen 4
    core, [64,13,13,C], n=15, medians): 8 channels to 16 filters 1.2, to 32 0.9, to 64
    0.7, 16 channels to 16 filters 0.7, to 64 0.45, 32 channels to 64 filters 0.36.
    """
    *size, channels, _ = kernel.shape
    if channels == 1 and math.prod(size) * math.prod(stage.pool) <= 100:
        return _DIRECT
    if stage.strides == stage.dilation == (1, 1) and prefers_winograd(x, kernel):
        return _WINOGRAD
    return _PATCHES


def prefers_winograd(x: jax.Array, kernel: jax.Array) -> bool:
    """Returns whether Winograd is faster than patches, without strides or dilation."""
    *size, channels, filters = kernel.shape
    # Wide patches, and those that leave the caches, are slow: with [16,28,28,16] to 8
    # filters a step of the U-Net takes 6.8 ms, and 3.5 by Winograd (two Zen 4 cores,
    # batch 32, n=8).
    wide = channels >= 16 or 4 * x.size * math.prod(size) > _LARGEST_IN_CACHE
    large = channels * filters >= (128 if wide else 256)
    return size in ([3, 3], [5, 5]) and channels >= 8 and large


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _conv_pool(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, stage: _Stage
) -> jax.Array:
    """Runs a stage on inputs that are already padded."""
    return _conv_pool_fwd(x, kernel, bias, stage)[0]


def _conv_pool_fwd(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, stage: _Stage
) -> tuple[jax.Array, tuple]:
    """Returns the outputs and the residuals for the backward pass."""
    forward = _choose_algorithm(x, kernel, stage).forward
    if (chunks := _count_chunks(x, kernel, stage)) == 1:
        pooled, saved = forward(x, kernel, bias, stage)
        return _outputs(pooled), (x, kernel, pooled, saved)
    pooled = lax.map(lambda x: forward(x, kernel, bias, stage)[0], _split(x, chunks))
    pooled = pooled.reshape(-1, *pooled.shape[2:])
    return _outputs(pooled), (x, kernel, pooled, None)


def _conv_pool_bwd(
    stage: _Stage, residuals: tuple, g: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of inputs, kernel and bias."""
    x, kernel, pooled, saved = residuals
    algorithm = _choose_algorithm(x, kernel, stage)
    if (chunks := _count_chunks(x, kernel, stage)) == 1:
        return algorithm.backward(x, kernel, pooled, saved, g, stage)
    zeros = jnp.zeros_like(kernel), jnp.zeros_like(kernel[0, 0, 0])

    def add(total: Any, chunk: Any) -> Any:
        x, pooled, g = chunk
        _, saved = algorithm.forward(x, kernel, zeros[1], stage)  # only what is used
        dx, *grads = algorithm.backward(x, kernel, pooled, saved, g, stage)
        return jax.tree.map(jnp.add, total, tuple(grads)), dx

    split = [_split(array, chunks) for array in (x, pooled, g)]
    (dkernel, dbias), dx = lax.scan(add, zeros, split)
    return dx.reshape(x.shape), dkernel, dbias


def _count_chunks(x: jax.Array, kernel: jax.Array, stage: _Stage) -> int:
    """Returns the number of chunks of a batch whose arrays stay in the caches.

    LeNet's second stage makes 13 MB for 64 images: its step takes 15.5 ms in chunks,
    19.8 without (batch 128, two Intel cores with 2 MB each). Below 10 MB it is slower
    in chunks.
    """
    *size, channels, filters = kernel.shape
    algorithm = _choose_algorithm(x, kernel, stage)
    height, width = _output_lengths(x, size, stage._replace(pool=(1, 1)))
    values = height * width * math.prod(size) * channels  # of an image
    if algorithm is _WINOGRAD:
        tile, rows, columns = choose_tiling(height, width, size[0])
        values = rows * columns * (tile + size[0] - 1) ** 2 * (channels + filters)
    if algorithm is _DIRECT or 4 * values * len(x) <= _LARGEST_IN_CACHE:
        return 1
    counts = [n for n in range(1, len(x) + 1) if len(x) % n == 0]
    return next((n for n in counts if 4 * values * len(x) // n <= _CHUNK), len(x))


def _split(x: jax.Array, chunks: int) -> jax.Array:
    """Splits a batch into an axis of chunks."""
    return x.reshape(chunks, -1, *x.shape[1:])


_conv_pool.defvjp(_conv_pool_fwd, _conv_pool_bwd)


# Shared by the algorithms.


def materialize(fn: Callable, *args: Any) -> Any:
    """Computes `fn(*args)` into arrays that XLA cannot fuse with anything outside.

    XLA:CPU fuses elementwise operations into each of their consumers and so repeats
    them, here up to 16 times; `lax.optimization_barrier` is removed before fusion. A
    non-inlineable call is kept: the CNN's step takes 5.8 ms with it and 11.5 ms without
    (one Zen 5 core, batch 64, two runs). Calls inside `fn`, such as the one in
    `jnp.where`, may still be inlined.
    """

    def inner(*args: Any) -> Any:
        with set_xla_metadata(inlineable="true"):
            return fn(*args)

    with set_xla_metadata(inlineable="false"):
        return jax.jit(inner)(*args)


def _output_lengths(x: jax.Array, size: Sequence[int], stage: _Stage) -> list[int]:
    """Returns a stage's output height and width for padded inputs [B,H,W,C]."""
    return [
        ((length - reach * (taps - 1) - 1) // strides + 1) // pool
        for length, taps, strides, pool, reach in zip(
            x.shape[1:3], size, stage.strides, stage.pool, stage.dilation, strict=True
        )
    ]


def _tile_inputs(x: jax.Array, size: Sequence[int], stage: _Stage) -> dict:
    """Slices inputs [B,H,W,C] into tiles [B,h,w,C], by position, for such a kernel."""
    lengths = _output_lengths(x, size, stage)
    steps = [s * p for s, p in zip(stage.strides, stage.pool, strict=True)]

    def take(position: Pair) -> jax.Array:
        rows, columns = (
            slice(start, start + step * (length - 1) + 1, step)
            for start, step, length in zip(position, steps, lengths, strict=True)
        )
        return x[:, rows, columns]

    taps = itertools.chain(*_tap_positions(size, stage))
    return {position: take(position) for position in dict.fromkeys(taps)}


def _tap_positions(size: Sequence[int], stage: _Stage) -> list[list[Pair]]:
    """Lists, for each phase, the position in the tile that each of its taps reads."""
    (rows, columns), (down, right) = stage.strides, stage.dilation
    taps = list(itertools.product(*map(range, size)))
    phases = itertools.product(*map(range, stage.pool))
    return [
        [(rows * r + down * k, columns * s + right * m) for k, m in taps]
        for r, s in phases
    ]


def interleave(phases: dict[Pair, jax.Array], steps: Sequence[int]) -> jax.Array:
    """Joins arrays `[B,h,w,C]` of every steps-th row and column, zero where missing."""
    zeros = jnp.zeros_like(next(iter(phases.values())))
    rows = [
        jnp.stack([phases.get((p, q), zeros) for q in range(steps[1])], axis=3)
        for p in range(steps[0])
    ]
    joined = jnp.stack(rows, axis=2)  # [B,h,step,w,step,C]
    batch, h, _, w, _, channels = joined.shape
    return joined.reshape(batch, h * steps[0], w * steps[1], channels)


def _add_patches(
    dpatches: Any, size: Sequence[int], stage: _Stage, shape: tuple[int, ...]
) -> jax.Array:
    """Sums the patch gradients [B,h,w,k*l*C] of all phases into the inputs' gradient.

    Args:
        dpatches: one array per phase.
        size: of the kernel.
        stage: the stage.
        shape: shape of the inputs, [B,H,W,C].
    """
    positions, channels = _tap_positions(size, stage), shape[3]
    steps = [s * p for s, p in zip(stage.strides, stage.pool, strict=True)]
    last = positions[-1][-1]
    overlaps = [p // step for p, step in zip(last, steps, strict=True)]  # in steps

    def add(dpatches: Any) -> dict:
        tiles: dict[Pair, jax.Array] = {}
        for dpatch, taps in zip(dpatches, positions, strict=True):
            for tap, position in enumerate(taps):
                d = dpatch[..., tap * channels : (tap + 1) * channels]
                tiles[position] = tiles[position] + d if position in tiles else d
        sums: dict[Pair, jax.Array] = {}
        for (p, q), tile in tiles.items():
            down, right = p // steps[0], q // steps[1]
            pads = [(down, overlaps[0] - down, 0), (right, overlaps[1] - right, 0)]
            d = pad(tile, [(0, 0, 0), *pads, (0, 0, 0)])
            offset = p % steps[0], q % steps[1]
            sums[offset] = sums[offset] + d if offset in sums else d
        return sums

    def join(sums: Any) -> jax.Array:
        dx = interleave(sums, steps)
        return pad(dx, [(0, n - m, 0) for n, m in zip(shape, dx.shape, strict=True)])

    return materialize(join, materialize(add, dpatches))


def _activation_grad(out: jax.Array, g: jax.Array, activation: str) -> jax.Array:
    """Backpropagates `g` through the activation, given only its output."""
    if activation == "relu":
        return jnp.where(out > 0, g, 0.0)
    return g * (1.0 - out * out) if activation == "tanh" else g


def _pool_phases(
    phases: Any, bias: jax.Array, stage: _Stage, fields: Any = None
) -> jax.Array:
    """Takes the max over the phases [B,h,w,D], adds the bias, applies the activation.

    If rounding can make mathematically equal phases differ, `fields` holds one array
    [B,h,w,1] per phase: phases are equal where their `fields` are.

    With pooling, the result is complex: the real part is the output, the imaginary part
    the index of the first phase that holds the max, for the gradient. A loop of XLA:CPU
    writes one array: two arrays would take two loops, and the convolution before them
    would run twice (1.02 times the CNN's step at batch 128, median of 11 processes,
    two Zen 5 cores; no difference at batch 32).
    """
    best = phases[0]
    winner = jnp.zeros(best.shape, best.dtype)
    for index, phase in enumerate(phases[1:], 1):
        larger = phase > best
        for earlier in range(index if fields else 0):
            larger &= fields[index] != fields[earlier]
        winner = jnp.where(larger, jnp.asarray(index, best.dtype), winner)
        best = jnp.maximum(best, phase)
    out = ACTIVATIONS[stage.activation](best + bias[None, None, None, :])
    return lax.complex(out, winner) if len(phases) > 1 else out


def _outputs(pooled: jax.Array) -> jax.Array:
    """Extracts the outputs from the result of `_pool_phases`."""
    return lax.real(pooled) if jnp.iscomplexobj(pooled) else pooled


def _winners(pooled: jax.Array) -> jax.Array:
    """Extracts the index of the max phase from the result of `_pool_phases`."""
    return lax.imag(pooled)


def _phase_grads(pooled: jax.Array, g: jax.Array, stage: _Stage) -> list[jax.Array]:
    """Returns each phase's gradient [B,h,w,D], zero where it did not hold the max."""
    g = _activation_grad(_outputs(pooled), g, stage.activation)
    if stage.pool == (1, 1):
        return [g]
    winners = _winners(pooled)
    return [jnp.where(winners == i, g, 0.0) for i in range(math.prod(stage.pool))]


def _rows(x: jax.Array) -> jax.Array:
    """Reshapes [B,h,w,C] to [B*h*w,C]."""
    return x.reshape(-1, x.shape[-1])


def _transpose(matrix: jax.Array) -> jax.Array:
    """Transposes a matrix in memory.

    XLA does not use its fast library for a product that contracts the rows of both
    operands (95 against 190 GFLOP/s on one Zen 5 core, [1600,32] by [1600,64]).
    """
    return materialize(jnp.transpose, matrix)


# Algorithm 1, one input channel: the sum over the taps as an elementwise loop.


def _direct_forward(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, stage: _Stage
) -> tuple:
    """Convolves, pools and applies the activation in one loop."""
    size = kernel.shape[:2]

    def run(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        tiles = _tile_inputs(x, size, stage)
        weights = [weight[None, None, None] for weight in _rows(kernel)]
        phases: Any = [
            sum(tiles[tap] * weight for tap, weight in zip(taps, weights, strict=True))
            for taps in _tap_positions(size, stage)
        ]
        return _pool_phases(phases, bias, stage)

    x = materialize(lambda x: x, x)
    return materialize(run, x, kernel, bias), x


def _direct_backward(
    x: jax.Array,
    kernel: jax.Array,
    pooled: jax.Array,
    saved: Any,
    g: jax.Array,
    stage: _Stage,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes kernel and bias gradients in one product, with ones for the bias."""
    size, channels = kernel.shape[:2], kernel.shape[3]
    taps = _tap_positions(size, stage)

    def spread(pooled: jax.Array, g: jax.Array) -> jax.Array:  # [phases,B,h,w,D]
        g = _activation_grad(_outputs(pooled), g, stage.activation)[None]
        phase = lax.broadcasted_iota(g.dtype, (len(taps), 1, 1, 1, 1), 0)
        if stage.pool == (1, 1):
            return g
        return jnp.where(_winners(pooled)[None] == phase, g, 0.0)

    def inputs_and_ones(x: jax.Array) -> jax.Array:  # [phases,k*k+1,B,h,w]
        tiles = _tile_inputs(x[..., 0], size, stage)
        ones = jnp.ones_like(tiles[0, 0])
        return jnp.stack(
            [jnp.stack([*(tiles[tap] for tap in phase), ones]) for phase in taps]
        )

    phases = materialize(spread, pooled, g).reshape(len(taps), -1, channels)
    inputs = materialize(inputs_and_ones, saved)
    products = (inputs.reshape(*inputs.shape[:2], -1) @ phases).sum(0)
    dkernel = products[:-1].reshape(kernel.shape)
    # The first layer's dx is unused, and XLA removes the rest of this function.
    dpatches = phases @ _transpose(_rows(kernel))
    dpatches = list(dpatches.reshape(len(taps), *g.shape[:3], -1))
    dx = _add_patches(dpatches, size, stage, x.shape)
    return dx, dkernel, products[-1]


# Algorithm 2, 3x3 or 5x5 kernel, stride 1: Winograd (`mnist_jax/models/winograd.py`).


def _mark_fields(x: jax.Array, size: int) -> jax.Array:
    """Returns numbers [B,h,w,1] that identify equal receptive fields.

    Equal fields have equal numbers, and all-zero fields have zero. On blank areas next
    to strokes (one pooling window in nine), outputs are mathematically equal or zero,
    but Winograd's differ by rounding errors. Without these numbers, pooling and ReLU
    would send gradients to other positions than the plain implementation does.
    """
    weights = jnp.cos(jnp.arange(x.shape[3], dtype=x.dtype)) + 2  # arbitrary values
    pixels = (_rows(x) @ weights).reshape(x.shape[:3])

    def add(pixels: jax.Array) -> jax.Array:
        height, width = (length - size + 1 for length in pixels.shape[1:])
        return sum(
            (1.0 + (size * k + m) ** 0.5) * pixels[:, k : k + height, m : m + width]
            for k in range(size)
            for m in range(size)
        )[..., None]

    return materialize(add, pixels)


def _winograd_forward(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, stage: _Stage
) -> tuple:
    """Transforms the tiles, multiplies and pools; i and j index a transformed tile.

    Each result is laid out for the next transform: the axis it sums over comes late, so
    that its inputs are in the nearest cache, unless the products need that axis first.
    """
    size = kernel.shape[0]
    lengths = _output_lengths(x, (size, size), stage)
    height, width = (n * pool for n, pool in zip(lengths, stage.pool, strict=True))
    tile, rows, columns = choose_tiling(height, width, size)
    transforms, points = make_transforms(tile, size), tile + size - 1

    def transform_rows(x: jax.Array) -> jax.Array:  # [B,rows,i,W,C]
        return combine(transforms.inputs, extract_tiles(x, tile, rows, size, 1), 2)

    def transform_columns(x: jax.Array) -> jax.Array:  # [j,i,B,rows,columns,C]
        x = x.transpose(2, 0, 1, 3, 4)
        return combine(transforms.inputs, extract_tiles(x, tile, columns, size, 3))

    def transform_kernel_rows(kernel: jax.Array) -> jax.Array:  # [i,k,C,D]
        return combine(transforms.kernel, list(kernel))

    def transform_kernel_columns(kernel: jax.Array) -> jax.Array:  # [j,i,C,D]
        return combine(transforms.kernel, [kernel[:, m] for m in range(size)])

    def inverse_columns(products: jax.Array) -> jax.Array:  # [i,B*rows*columns,m,D]
        return combine(transforms.outputs, list(products), 2)

    def inverse_rows(products: jax.Array) -> jax.Array:  # [B,rows,m,columns*m,D]
        return combine(transforms.outputs, list(products), 2)

    def finish(y: jax.Array, bias: jax.Array, fields: Any) -> jax.Array:
        def split_phases(x: jax.Array) -> list[jax.Array]:
            down, right = stage.pool
            offsets = itertools.product(range(down), range(right))
            return [x[:, r:height:down, s:width:right] for r, s in offsets]

        if fields is None:
            return _pool_phases(split_phases(y), bias, stage)
        phases = [
            jnp.where(field == 0, 0.0, phase)
            for phase, field in zip(split_phases(y), split_phases(fields), strict=True)
        ]
        return _pool_phases(phases, bias, stage, split_phases(fields))

    inputs = materialize(transform_columns, materialize(transform_rows, x))
    inputs = inputs.reshape(points, points, -1, x.shape[3])
    weights = materialize(
        transform_kernel_columns, materialize(transform_kernel_rows, kernel)
    )
    products = jnp.einsum("jirc,jicd->jird", inputs, weights)
    y = materialize(inverse_columns, products)
    y = y.reshape(points, len(x), rows, columns * tile, -1)
    y = materialize(inverse_rows, y)
    y = y.reshape(len(x), rows * tile, columns * tile, -1)
    linear = stage.activation == "linear" and stage.pool == (1, 1)  # no comparisons
    fields = None if linear else _mark_fields(x, size)
    return materialize(finish, y, bias, fields), (inputs, weights)


def _winograd_backward(
    x: jax.Array,
    kernel: jax.Array,
    pooled: jax.Array,
    saved: Any,
    g: jax.Array,
    stage: _Stage,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Runs the forward pass in reverse, with both gradients' products in between."""
    inputs, weights = saved
    batch, height, width, channels = g.shape
    (down, right), size = stage.pool, kernel.shape[0]
    tile, rows, columns = choose_tiling(height * down, width * right, size)
    transforms, points = make_transforms(tile, size), tile + size - 1

    def spread(pooled: jax.Array, g: jax.Array) -> jax.Array:  # [B,h,pool,w,pool,D]
        shape = (1, 1, down, 1, right, 1)
        offset = functools.partial(lax.broadcasted_iota, g.dtype, shape)
        phase = right * offset(2) + offset(4)
        winners = _winners(pooled)[:, :, None, :, None]
        return jnp.where(winners == phase, g[:, :, None, :, None], 0.0)

    def transform_rows(g: jax.Array) -> jax.Array:  # [B,rows,i,columns*m,D]
        g = pad_or_crop(pad_or_crop(g, rows * tile, 1), columns * tile, 2)
        g = g.reshape(batch, rows, tile, columns * tile, channels)
        return combine(transforms.outputs.T, [g[:, :, m] for m in range(tile)], 2)

    def transform_columns(g: jax.Array) -> jax.Array:  # [j,i,B,rows,columns,D]
        g = g.transpose(2, 0, 1, 3, 4)
        g = g.reshape(points, batch, rows, columns, tile, channels)
        return combine(transforms.outputs.T, [g[..., m, :] for m in range(tile)])

    def inverse_kernel_columns(dweights: jax.Array) -> jax.Array:  # [k,i,C,D]
        return combine(transforms.kernel.T, list(dweights))

    def inverse_kernel_rows(dweights: jax.Array) -> jax.Array:  # [k,k,C,D]
        return combine(transforms.kernel.T, [dweights[:, i] for i in range(points)])

    def inverse_columns(dinputs: jax.Array) -> jax.Array:  # [i,B,rows,columns,j,C]
        return combine(transforms.inputs.T, list(dinputs), 4)

    def inverse_rows(dinputs: jax.Array) -> jax.Array:  # [B,rows,i,W,C]
        return combine(transforms.inputs.T, list(dinputs), 2)

    def activation_grad(pooled: jax.Array, g: jax.Array) -> jax.Array:
        return _activation_grad(_outputs(pooled), g, stage.activation)

    g = materialize(activation_grad, pooled, g)
    dbias = _rows(g).sum(0)
    if stage.pool != (1, 1):
        g = materialize(spread, pooled, g)
        g = g.reshape(batch, height * down, width * right, channels)
    dproducts = materialize(transform_columns, materialize(transform_rows, g))
    dproducts = dproducts.reshape(points, points, -1, channels)
    dweights = jnp.einsum("jirc,jird->jicd", inputs, dproducts)
    dweights = materialize(inverse_kernel_columns, dweights)
    dinputs = jnp.einsum("jird,jicd->jirc", dproducts, weights)
    dinputs = dinputs.reshape(points, points, batch, rows, columns, -1)
    dx = materialize(inverse_columns, dinputs)
    dx = materialize(
        functools.partial(sum_tiles, tile=tile, length=x.shape[2], axis=3), dx
    )
    dx = materialize(inverse_rows, dx)
    dx = materialize(
        functools.partial(sum_tiles, tile=tile, length=x.shape[1], axis=1), dx
    )
    return dx, materialize(inverse_kernel_rows, dweights), dbias


# Algorithm 3, everything else: a matrix of patches for each phase.


def _patches_forward(
    x: jax.Array, kernel: jax.Array, bias: jax.Array, stage: _Stage
) -> tuple:
    """Multiplies the patches [B*h*w,k*k*C] of each phase by the kernel."""
    size = kernel.shape[:2]

    def split_phases(x: jax.Array) -> list[jax.Array]:
        tiles = _tile_inputs(x, size, stage)
        return [
            jnp.concatenate([tiles[tap] for tap in taps], axis=-1)
            for taps in _tap_positions(size, stage)
        ]

    patches = materialize(split_phases, x)
    shape = patches[0].shape[:3]
    patches = [_rows(p) for p in patches]
    weights = _rows(kernel)
    phases = [(p @ weights).reshape(*shape, -1) for p in patches]
    finish = functools.partial(_pool_phases, stage=stage)
    return materialize(finish, phases, bias), patches


def _patches_backward(
    x: jax.Array,
    kernel: jax.Array,
    pooled: jax.Array,
    saved: Any,
    g: jax.Array,
    stage: _Stage,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sums the gradients of the patches into the inputs' gradient, tile by tile."""
    size = kernel.shape[:2]
    spread = functools.partial(_phase_grads, stage=stage)
    phases = [_rows(phase) for phase in materialize(spread, pooled, g)]
    # g.T @ p takes half as long as p.T @ g ([576,576] by [576,64], one Zen 5 core). XLA
    # rewrites it to the slow form unless the result is transposed in memory.
    dweights = sum(phase.T @ p for phase, p in zip(phases, saved, strict=True))
    dkernel = _transpose(dweights).reshape(kernel.shape)
    dbias: Any = sum(phase.sum(0) for phase in phases)
    weights = _transpose(_rows(kernel))
    dpatches = [(phase @ weights).reshape(*g.shape[:3], -1) for phase in phases]
    dx = _add_patches(dpatches, size, stage, x.shape)
    return dx, dkernel, dbias


class _Algorithm(NamedTuple):
    """One way to compute a stage, forward and backward."""

    forward: Callable
    backward: Callable


_DIRECT = _Algorithm(_direct_forward, _direct_backward)
_WINOGRAD = _Algorithm(_winograd_forward, _winograd_backward)
_PATCHES = _Algorithm(_patches_forward, _patches_backward)
