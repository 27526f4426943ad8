"""Batch normalization for CPUs.

XLA's CPU backend makes windowed reductions of sums over more than 32 numbers
(github.com/openxla/xla/issues/16792, jaxlib 0.10.2), which add one number at a time
inside a loop: those of `nn.BatchNorm` took a third of a CNN's step. Here they are
products with a row of ones, and the gradient, written by hand, takes two of them.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mnist_jax.models.conv_cpu import materialize


def _means(x: jax.Array, factors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the means of the rows of `x [N,C]` and of `x * factors`, each `[1,C]`."""
    parts = max(n for n in range(1, 17) if len(x) % n == 0)

    def add(x: jax.Array, factors: jax.Array) -> Any:
        # One array for both, which XLA:CPU computes in one loop.
        chunks = zip(jnp.split(x, parts), jnp.split(factors, parts), strict=True)
        return sum(lax.complex(chunk, chunk * factor) for chunk, factor in chunks)

    sums = materialize(add, x, factors)
    ones = jnp.full((1, len(sums)), 1 / len(x), x.dtype)
    return ones @ lax.real(sums), ones @ lax.imag(sums)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalizes each channel by its mean and variance.

    Args:
        x: inputs `[N,C]`.
        scale: `[1,C]`, factor of the normalized channels.
        bias: `[1,C]`, added to them.
        epsilon: added to the variance.

    Returns:
        The outputs `[N,C]`, and the mean and the variance `[1,C]`.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> Any:
    mean, mean_square = _means(x, x)
    variance = jnp.maximum(mean_square - mean * mean, 0.0)
    inverse = lax.rsqrt(variance + epsilon)
    y = (x - mean) * (scale * inverse) + bias
    return (y, mean, variance), (x, scale, mean, inverse)


def _backward(epsilon: float, saved: Any, gradients: Any) -> Any:
    del epsilon
    x, scale, mean, inverse = saved
    dy, d_mean, d_variance = gradients
    dy_mean, dy_x_mean = _means(dy, x)
    slope = inverse * (dy_x_mean - mean * dy_mean)  # mean of dy times normalized x
    d_centred = d_variance * (2 / len(x)) - scale * inverse * inverse * slope
    d_x = (scale * inverse) * (dy - dy_mean) + (x - mean) * d_centred + d_mean / len(x)
    return d_x, len(x) * slope, len(x) * dy_mean


normalize.defvjp(_forward, _backward)
