"""Convolution, bias, activation and max pooling in forms that XLA compiles well on CPU.

`lax.conv_general_dilated` inside a `lax.scan` body becomes a naive loop on CPU when it
is a gradient, and the gradient of `nn.max_pool` is a slow select-and-scatter. Here a
stage is matrix products and elementwise work only.
"""

import functools

import jax
import jax.numpy as jnp

_ACTIVATIONS = {
    None: lambda x: x,
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


def to_layout(images: jax.Array) -> jax.Array:
    """Turns images [B,H,W,C] into the layout that `conv_pool` works in, the same one."""
    return images


def from_layout(x: jax.Array) -> jax.Array:
    """Turns an output of `conv_pool` into [B,H,W,C]."""
    return x


def conv_pool(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    strides: int,
    padding: str,
    activation: str | None,
    pool: int | None,
) -> jax.Array:
    """Convolves, adds the bias, applies the activation and pools."""
    size = kernel.shape[0]
    if padding == "SAME":
        x = _pad_same(x, size, strides)
    height, width = ((n - size) // strides + 1 for n in x.shape[1:3])
    if pool:
        height, width = height // pool * pool, width // pool * pool
    taps = [
        _window(x, row, col, height, width, strides)
        for row in range(size)
        for col in range(size)
    ]
    patches = jnp.concatenate(taps, axis=-1).reshape(-1, size * size * x.shape[-1])
    y = patches @ kernel.reshape(patches.shape[-1], -1)
    y = y.reshape(x.shape[0], height, width, -1)
    if pool:
        y = _max_pool(y, pool)
    return _ACTIVATIONS[activation](y + bias[None, None, None, :])


def _pad_same(x, size, strides):
    """Adds the zeros of SAME padding, more of them at the end where uneven."""
    pads = [(0, 0)]
    for n in x.shape[1:3]:
        total = max((-(-n // strides) - 1) * strides + size - n, 0)
        pads.append((total // 2, total - total // 2))
    return jnp.pad(x, pads + [(0, 0)])


def _window(x, row, col, height, width, strides):
    """Takes the [B,height,width,C] inputs that one kernel tap meets."""
    return x[
        :,
        row : row + (height - 1) * strides + 1 : strides,
        col : col + (width - 1) * strides + 1 : strides,
    ]


def _pool_phases(y, pool):
    b, h, w, c = y.shape
    y = y.reshape(b, h // pool, pool, w // pool, pool, c)
    return [y[:, :, i, :, j] for i in range(pool) for j in range(pool)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(y, pool):
    return _max_pool_fwd(y, pool)[0]


def _max_pool_fwd(y, pool):
    phases = _pool_phases(y, pool)
    best, winner = phases[0], jnp.zeros(phases[0].shape, jnp.int8)
    for index, phase in enumerate(phases[1:], 1):
        winner = jnp.where(phase > best, jnp.int8(index), winner)
        best = jnp.maximum(best, phase)
    return best, winner


def _max_pool_bwd(pool, winner, g):
    b, h, w, c = g.shape
    parts = [jnp.where(winner == i, g, 0.0) for i in range(pool * pool)]
    rows = [jnp.stack(parts[i * pool : (i + 1) * pool], 3) for i in range(pool)]
    return (jnp.stack(rows, 2).reshape(b, h * pool, w * pool, c),)


_max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
