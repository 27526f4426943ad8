"""Convolutions, pooling and sums of any network in forms that are fast on CPUs.

Inside a loop, XLA:CPU compiles the gradients of lax's operations to naive loops and
scatters. `RULES` maps the names of lax's primitives to functions with the primitives'
parameters that return the same, or None for arguments that they do not handle.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mnist_jax.models.conv_cpu import Pair, conv_pool, interleave, materialize, pad

_FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)
_LARGEST_WINDOW = 64  # elements; each adds operations to the program


def can_convolve(x: Any, kernel: Any, params: dict[str, Any]) -> bool:
    """Returns whether `convolve` handles such arrays and parameters."""
    return (
        x.ndim in (3, 4)
        and x.dtype in _FLOATS
        and params["batch_group_count"] == 1
        and 0 not in (*x.shape, *kernel.shape)
        and (
            set(params["lhs_dilation"]) == {1}
            or {*params["window_strides"], *params["rhs_dilation"]} == {1}
        )
    )


def can_fuse(x: Any, kernel: Any, params: dict[str, Any]) -> bool:
    """Returns whether `convolve` takes a bias, an activation and pooling with them."""
    plain = {params["feature_group_count"], *params["lhs_dilation"], x.ndim - 3} == {1}
    return plain and can_convolve(x, kernel, params)


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None = None,
    *,
    activation: str = "linear",
    pool: Pair = (1, 1),
    **params: Any,
) -> jax.Array | None:
    """`lax.conv_general_dilated`, and the bias, activation and max pooling after it.

    The last three need what `can_fuse` accepts.

    Args:
        x: in the layout of `dimension_numbers`, with one or two spatial axes.
        kernel: likewise.
        bias: an element for each feature, or None.
        activation: "relu", "tanh" or "linear".
        pool: shape and strides of the pooling window.
        params: of the primitive.
    """
    if not can_convolve(x, kernel, params):
        return None
    groups: int = params["feature_group_count"]
    padding: list[Pair] = list(params["padding"])
    lhs, rhs, out = params["dimension_numbers"]
    dtype = params["preferred_element_type"] or x.dtype
    x = x.transpose(lhs[0], *lhs[2:], lhs[1]).astype(jnp.float32)
    kernel = kernel.transpose(*rhs[2:], rhs[1], rhs[0]).astype(jnp.float32)
    names = "window_strides", "rhs_dilation", "lhs_dilation"
    steps = [tuple(params[name]) for name in names]
    if line := x.ndim == 3:
        x, kernel = x[:, None], kernel[None]
        padding, steps = [(0, 0), *padding], [(1, *n) for n in steps]
    strides, dilation, spacing = steps
    options: Any = dict(padding=padding, strides=strides, dilation=dilation)
    if spacing != (1, 1):
        y = _convolve_spaced(x, kernel, padding, spacing, groups)
    elif groups > 1:
        y = _convolve_groups(x, kernel, groups, **options)
    else:
        if bias is not None:
            bias = bias.reshape(-1).astype(jnp.float32)
        run = functools.partial(conv_pool, activation=activation, pool=pool)
        large = math.prod(kernel.shape) >= 9 * 256  # as `_choose_algorithm` asks
        if large and pool == strides == (1, 1) != dilation:
            y = _convolve_dilated(run, x, kernel, bias, padding, dilation)
        else:
            y = run(x, kernel, bias, **options)
    if line:
        y = y[:, 0]
    axes = [0, y.ndim - 1, *range(1, y.ndim - 1)]  # batch, features, then spatial
    return y.transpose([axes[out.index(axis)] for axis in range(y.ndim)]).astype(dtype)


def _convolve_groups(
    x: jax.Array,
    kernel: jax.Array,
    groups: int,
    padding: Sequence[Pair],
    strides: Pair = (1, 1),
    dilation: Pair = (1, 1),
) -> jax.Array:
    """Convolves `[B,H,W,C]` with `[k,l,C/groups,F]`, group by group of channels."""
    filters = kernel.shape[3]
    if kernel.shape[2] == 1:
        x = jnp.repeat(x, filters // groups, axis=3)
        pads = (0, 0), *map(tuple, padding), (0, 0)
        return _depthwise(x, kernel[:, :, 0], strides, pads, dilation)

    options: Any = dict(padding=padding, strides=strides, dilation=dilation)
    run: Any = functools.partial(conv_pool, **options)
    x = x.reshape(*x.shape[:3], groups, -1)
    kernel = kernel.reshape(*kernel.shape[:3], groups, -1)
    y = jax.vmap(run, 3, 3)(x, kernel)
    return y.reshape(*y.shape[:3], filters)


def _convolve_dilated(
    convolve: Callable[..., jax.Array],
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    padding: Sequence[Pair],
    dilation: Pair,
) -> jax.Array:
    """Convolves every d-th row and column as an image of its own, without dilation.

    Then Winograd is possible: a step of the example with dilations of 2 and 4 takes
    11.2 ms instead of 14.5 (two Zen 4 cores, batch 128, n=8).
    """
    (d, e), batch = dilation, len(x)
    sides = zip(x.shape[1:3], padding, dilation, strict=True)
    rests = [-(n + sum(pair)) % step for n, pair, step in sides]

    def split(x: jax.Array) -> jax.Array:  # [d,e,B,H/d,W/e,C]
        (top, bottom), (left, right) = padding
        pads = (top, bottom + rests[0], 0), (left, right + rests[1], 0)
        x = pad(x, [(0, 0, 0), *pads, (0, 0, 0)])
        x = x.reshape(batch, x.shape[1] // d, d, x.shape[2] // e, e, -1)
        return x.transpose(2, 4, 0, 1, 3, 5)

    def join(y: jax.Array) -> jax.Array:
        (_, height, width, features) = y.shape
        y = y.reshape(d, e, batch, height, width, features).transpose(2, 3, 0, 4, 1, 5)
        y = y.reshape(batch, height * d, width * e, features)
        return y[:, : height * d - rests[0], : width * e - rests[1]]

    x = materialize(split, x)
    y = convolve(x.reshape(-1, *x.shape[3:]), kernel, bias, padding=[(0, 0)] * 2)
    return materialize(join, y)


def _convolve_spaced(
    x: jax.Array,
    kernel: jax.Array,
    padding: Sequence[Pair],
    spacing: Pair,
    groups: int,
) -> jax.Array:
    """Convolves inputs with zeros between them, as in a transposed convolution.

    Outputs at positions of equal remainder by the spacing read the same taps of the
    kernel: each of these phases is a convolution of the inputs without the zeros.
    """
    taps, before = kernel.shape[:2], [pair[0] for pair in padding]
    lengths = [
        (n - 1) * step + 1 + sum(pair) - k + 1
        for n, step, pair, k in zip(x.shape[1:3], spacing, padding, taps, strict=True)
    ]
    counts = [-(-n // step) for n, step in zip(lengths, spacing, strict=True)]

    def phase(offsets: Pair) -> jax.Array:
        first = [(b - o) % s for o, b, s in zip(offsets, before, spacing, strict=True)]
        part = kernel[first[0] :: spacing[0], first[1] :: spacing[1]]
        if 0 in part.shape:
            return jnp.zeros((len(x), *counts, kernel.shape[3]))
        starts = [
            (o + f - b) // s
            for o, f, b, s in zip(offsets, first, before, spacing, strict=True)
        ]
        pads = [
            (-start, count + k - 1 + start - n)
            for start, count, k, n in zip(
                starts, counts, part.shape, x.shape[1:3], strict=False
            )
        ]
        if groups > 1:
            return _convolve_groups(x, part, groups, pads)
        return conv_pool(x, part, padding=pads)

    phases = {o: phase(o) for o in itertools.product(*map(range, spacing))}
    y = interleave(phases, spacing)
    return y[:, : lengths[0], : lengths[1]]


def _taps(
    x: jax.Array, size: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Iterator[jax.Array]:
    """Yields what each element of a window over all axes reads, in row-major order."""
    spans = [reach * (k - 1) + 1 for k, reach in zip(size, dilation, strict=True)]
    for tap in itertools.product(*map(range, size)):
        starts = [t * reach for t, reach in zip(tap, dilation, strict=True)]
        stops = [
            n - span + s + 1 for n, span, s in zip(x.shape, spans, starts, strict=True)
        ]
        yield lax.slice(x, starts, stops, strides)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _depthwise(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: Any, dilation: Pair
) -> jax.Array:
    """Convolves each channel of `[B,H,W,C]` with its own kernel in `[k,l,C]`."""

    def run(x: jax.Array, kernel: jax.Array) -> Any:
        weights = kernel.reshape(-1, 1, 1, 1, x.shape[3])
        taps = _taps(x, *_spatial(kernel.shape[:2], strides, dilation))
        return sum(tap * weight for tap, weight in zip(taps, weights, strict=True))

    return materialize(run, _pad_with(x, padding, 0.0), kernel)


def _spatial(*pairs: Sequence[int]) -> list[tuple[int, ...]]:
    """Extends values for rows and columns to all four axes."""
    return [(1, *pair, 1) for pair in pairs]


def _depthwise_fwd(
    x: jax.Array, kernel: jax.Array, strides: Pair, padding: Any, dilation: Pair
) -> Any:
    return _depthwise(x, kernel, strides, padding, dilation), (x, kernel)


def _depthwise_bwd(
    strides: Pair, padding: Any, dilation: Pair, saved: Any, g: jax.Array
) -> Any:
    x, kernel = saved
    spatial = _spatial(kernel.shape[:2], strides, dilation)
    pads = []  # so that the flipped kernel gives dx
    for axis, (k, step, reach) in enumerate(zip(*spatial, strict=True)):
        before = reach * (k - 1) - padding[axis][0]
        length = step * (g.shape[axis] - 1) + 1
        after = x.shape[axis] + reach * (k - 1) - before - length
        pads.append((before, after, step - 1))

    def products(x: jax.Array, g: jax.Array) -> jax.Array:  # [k*l,B,w,C]
        # Summed over rows in one loop: 0.5 ms, and 1.8 ms as a sum over three axes
        # ([64,14,14,16], 3x3, one core).
        rows = range(g.shape[1])
        taps = _taps(x, *spatial)
        return jnp.stack([sum((tap * g)[:, row] for row in rows) for tap in taps])

    spread = materialize(lambda g: pad(g, pads), g)
    dx = _depthwise(spread, kernel[::-1, ::-1], (1, 1), ((0, 0),) * 4, dilation)
    sums = materialize(products, _pad_with(x, padding, 0.0), g)
    sums = sums.reshape(*kernel.shape[:2], -1, x.shape[3])
    # A matrix product, faster than XLA's sum.
    return dx, (jnp.ones((1, sums.shape[2])) @ sums)[:, :, 0]


_depthwise.defvjp(_depthwise_fwd, _depthwise_bwd)


class _Window(NamedTuple):
    """The static arguments of pooling, with one value for each axis."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[Pair, ...]
    dilation: tuple[int, ...]


def _pooling(
    function: Callable[[jax.Array, _Window], jax.Array],
) -> Callable[..., jax.Array | None]:
    """Returns the rule of a `reduce_window` primitive."""

    def rule(
        x: jax.Array,
        *,
        window_dimensions: Sequence[int],
        window_strides: Sequence[int],
        padding: Sequence[Pair],
        base_dilation: Sequence[int],
        window_dilation: Sequence[int],
    ) -> jax.Array | None:
        elements = math.prod(window_dimensions)
        known = x.dtype in _FLOATS and set(base_dilation) == {1} and x.size
        if not known or elements > _LARGEST_WINDOW:
            return None
        sizes = [tuple(n) for n in (window_dimensions, window_strides, window_dilation)]
        window = _Window(sizes[0], sizes[1], tuple(map(tuple, padding)), sizes[2])
        return function(x, window)

    return rule


def _windows(x: jax.Array, window: _Window, fill: float) -> Iterator[jax.Array]:
    """Yields each element of all windows of `x`, padded with a number."""
    x = _pad_with(x, window.padding, fill)
    return _taps(x, window.size, window.strides, window.dilation)


def _pad_with(x: jax.Array, padding: Sequence[Pair], fill: float) -> jax.Array:
    """Pads each axis with a number; less than 0 leaves elements out."""
    if not any(map(any, padding)):
        return x
    pads = [(before, after, 0) for before, after in padding]
    return materialize(lambda x: lax.pad(x, jnp.asarray(fill, x.dtype), pads), x)


def _add_windows(
    parts: Sequence[jax.Array], window: _Window, shape: tuple[int, ...]
) -> jax.Array:
    """Sums gradients of the windows' elements into the inputs' gradient of a shape."""
    taps = itertools.product(*map(range, window.size))
    before = [pair[0] for pair in window.padding]
    spatial = window.size[0] == window.size[-1] == len(shape) - 3 == 1
    apart = all(k <= step for k, step in zip(window.size, window.strides, strict=True))
    if spatial and apart and set(window.dilation) == {1}:
        phases = {tap[1:3]: part for tap, part in zip(taps, parts, strict=True)}
        dx = interleave(phases, window.strides[1:3])
        pads = [
            (-b, n + b - m, 0) for b, n, m in zip(before, shape, dx.shape, strict=True)
        ]
        return pad(dx, pads)
    total: Any = 0
    for tap, part in zip(taps, parts, strict=True):
        starts = [
            t * reach - b
            for t, reach, b in zip(tap, window.dilation, before, strict=True)
        ]
        pads = [
            (start, n - start - step * (m - 1) - 1, step - 1)
            for start, n, step, m in zip(
                starts, shape, window.strides, part.shape, strict=True
            )
        ]
        total += pad(part, pads)
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, window: _Window) -> jax.Array:
    """Maximum of each window; of equal values, the first has the gradient."""
    return _max_pool_fwd(x, window)[0]


def _max_pool_fwd(x: jax.Array, window: _Window) -> Any:
    def run(x: jax.Array) -> jax.Array:
        best, *others = _windows(x, window, -jnp.inf)
        winner = jnp.zeros(best.shape)
        for index, part in enumerate(others, 1):
            winner = jnp.where(part > best, jnp.float32(index), winner)
            best = jnp.maximum(best, part)
        # One array for one loop, as in `conv_cpu`.
        return lax.complex(best.astype(jnp.float32), winner)

    pooled = materialize(run, x)
    return lax.real(pooled).astype(x.dtype), (lax.imag(pooled), x.shape)


def _max_pool_bwd(window: _Window, saved: Any, g: jax.Array) -> Any:
    winner, shape = saved

    def run(winner: jax.Array, g: jax.Array) -> jax.Array:
        zero = jnp.zeros((), g.dtype)
        indices = range(math.prod(window.size))
        parts = [jnp.where(winner == i, g, zero) for i in indices]
        return _add_windows(parts, window, shape)

    return (materialize(run, winner, g),)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _sum_pool(x: jax.Array, window: _Window) -> jax.Array:
    """Sum of each window."""
    return materialize(lambda x: sum(_windows(x, window, 0.0)), x)


def _sum_pool_fwd(x: jax.Array, window: _Window) -> Any:
    return _sum_pool(x, window), x.shape


def _sum_pool_bwd(window: _Window, shape: Any, g: jax.Array) -> Any:
    elements = math.prod(window.size)
    return (materialize(lambda g: _add_windows([g] * elements, window, shape), g),)


_sum_pool.defvjp(_sum_pool_fwd, _sum_pool_bwd)


RULES: dict[str, Callable[..., jax.Array | None]] = {
    "conv_general_dilated": convolve,
    "reduce_window_max": _pooling(_max_pool),
    "reduce_window_sum": _pooling(_sum_pool),
}
