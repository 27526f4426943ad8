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
import numpy as np
from jax import lax

from mnist_jax.models.conv_cpu import (
    Pair,
    conv_pool,
    interleave,
    materialize,
    pad,
    prefers_winograd,
)

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
        plain = pool == strides == (1, 1)
        if plain and dilation != (1, 1) and prefers_winograd(x, kernel):
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
        sizes = ((1, *pair, 1) for pair in (kernel.shape[:2], strides, dilation))
        size, strides, dilation = sizes
        pads = (0, 0), *map(tuple, padding), (0, 0)
        x = jnp.repeat(x, filters // groups, axis=3)
        return _depthwise(x, kernel[:, :, 0], _Window(size, strides, pads, dilation))

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
    size, step, (before, after) = x.shape[1:3], np.array(spacing), np.array(padding).T
    lengths = step * np.subtract(size, 1) + before + after - kernel.shape[:2] + 2
    counts = -(-lengths // step)

    def phase(offsets: Pair) -> jax.Array:
        first = (before - offsets) % step
        part = kernel[first[0] :: step[0], first[1] :: step[1]]
        if 0 in part.shape:
            return jnp.zeros((len(x), *counts, kernel.shape[3]), x.dtype)
        starts = (offsets + first - before) // step
        pads = np.stack([-starts, counts + part.shape[:2] + starts - size - 1], 1)
        if groups > 1:
            return _convolve_groups(x, part, groups, pads.tolist())
        return conv_pool(x, part, padding=pads.tolist())

    phases = {o: phase(o) for o in itertools.product(*map(range, spacing))}
    y = interleave(phases, spacing)
    return y[:, : lengths[0], : lengths[1]]


class _Window(NamedTuple):
    """The static arguments of a sum or maximum over windows, a value for each axis."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[Pair, ...]
    dilation: tuple[int, ...]


def _windows(x: jax.Array, window: _Window, fill: float) -> Iterator[jax.Array]:
    """Yields each element of all windows of `x`, padded with a number, row by row."""
    if any(map(any, window.padding)):
        pads = [(before, after, 0) for before, after in window.padding]
        x = materialize(lambda x: lax.pad(x, jnp.asarray(fill, x.dtype), pads), x)
    spans = np.multiply(window.dilation, np.subtract(window.size, 1))
    for tap in itertools.product(*map(range, window.size)):
        starts = np.multiply(window.dilation, tap)
        stops = x.shape - spans + starts
        yield lax.slice(x, starts.tolist(), stops.tolist(), window.strides)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """Convolves each channel of `[B,H,W,C]` with its own kernel in `[k,l,C]`."""

    def run(x: jax.Array, kernel: jax.Array) -> Any:
        weights = kernel.reshape(-1, 1, 1, 1, x.shape[3])
        taps = _windows(x, window, 0.0)
        return sum(tap * weight for tap, weight in zip(taps, weights, strict=True))

    return materialize(run, x, kernel)


def _depthwise_bwd(window: _Window, saved: Any, g: jax.Array) -> Any:
    x, kernel = saved
    # Pads with which the flipped kernel gives dx.
    spans = np.multiply(window.dilation, np.subtract(window.size, 1))
    before = spans - [first for first, _ in window.padding]
    lengths = np.multiply(window.strides, np.subtract(g.shape, 1)) + 1
    after = x.shape + spans - before - lengths
    pads = np.stack([before, after, np.subtract(window.strides, 1)], 1).tolist()

    def products(x: jax.Array, g: jax.Array) -> jax.Array:  # [k*l,B,w,C]
        # Summed over rows in one loop: 0.5 ms, and 1.8 ms as a sum over three axes
        # ([64,14,14,16], 3x3, one core).
        rows, taps = range(g.shape[1]), _windows(x, window, 0.0)
        return jnp.stack([sum((tap * g)[:, row] for row in rows) for tap in taps])

    spread = materialize(lambda g: pad(g, pads), g)
    whole = window._replace(strides=(1,) * 4, padding=((0, 0),) * 4)
    dx = _depthwise(spread, kernel[::-1, ::-1], whole)
    sums = materialize(products, x, g).reshape(*kernel.shape[:2], -1, x.shape[3])
    # A matrix product, faster than XLA's sum.
    return dx, (jnp.ones((1, sums.shape[2]), sums.dtype) @ sums)[:, :, 0]


_depthwise.defvjp(
    lambda x, kernel, window: (_depthwise(x, kernel, window), (x, kernel)),
    _depthwise_bwd,
)


def _pool(
    function: Callable[[jax.Array, _Window], jax.Array],
    x: jax.Array,
    *,
    window_dimensions: tuple[int, ...],
    window_strides: tuple[int, ...],
    padding: Sequence[Pair],
    base_dilation: tuple[int, ...],
    window_dilation: tuple[int, ...],
) -> jax.Array | None:
    """Runs pooling with the parameters of a `reduce_window` primitive."""
    known = x.dtype in _FLOATS and set(base_dilation) == {1} and x.size
    if not known or math.prod(window_dimensions) > _LARGEST_WINDOW:
        return None
    pads = tuple(map(tuple, padding))
    window = _Window(window_dimensions, window_strides, pads, window_dilation)
    return function(x, window)


def _add_windows(
    parts: Sequence[jax.Array], window: _Window, shape: tuple[int, ...]
) -> jax.Array:
    """Sums gradients of the windows' elements into the inputs' gradient of a shape."""
    taps = itertools.product(*map(range, window.size))
    before = np.array(window.padding)[:, 0]
    spatial = window.size[0] == window.size[-1] == len(shape) - 3 == 1
    apart = all(k <= step for k, step in zip(window.size, window.strides, strict=True))
    if spatial and apart and set(window.dilation) == {1}:
        phases = {tap[1:3]: part for tap, part in zip(taps, parts, strict=True)}
        dx = interleave(phases, window.strides[1:3])
        after = before + shape - dx.shape
        return pad(dx, np.stack([-before, after, 0 * after], 1).tolist())
    total: Any = 0
    steps = np.array(window.strides)
    for tap, part in zip(taps, parts, strict=True):
        starts = np.multiply(window.dilation, tap) - before
        after = shape - starts - steps * np.subtract(part.shape, 1) - 1
        total += pad(part, np.stack([starts, after, steps - 1], 1).tolist())
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: jax.Array, window: _Window) -> jax.Array:
    """Maximum of each window; of equal values, the first has the gradient."""
    return _max_pool_fwd(x, window)[0]


def _max_pool_fwd(x: jax.Array, window: _Window) -> Any:
    def run(x: jax.Array) -> jax.Array:
        best, *others = _windows(x, window, -jnp.inf)
        winner = jnp.zeros(best.shape, jnp.float32)
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


def _sum_pool_bwd(window: _Window, shape: Any, g: jax.Array) -> Any:
    elements = math.prod(window.size)
    return (materialize(lambda g: _add_windows([g] * elements, window, shape), g),)


_sum_pool.defvjp(lambda x, window: (_sum_pool(x, window), x.shape), _sum_pool_bwd)


RULES: dict[str, Callable[..., jax.Array | None]] = {
    "conv_general_dilated": convolve,
    "reduce_window_max": functools.partial(_pool, _max_pool),
    "reduce_window_sum": functools.partial(_pool, _sum_pool),
}
