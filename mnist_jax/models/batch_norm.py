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
from flax import linen as nn
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


class BatchNorm(nn.BatchNorm):
    """`nn.BatchNorm` of the last axis, with the same variables."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """Normalizes `x [...,C]`; in training, also updates the running statistics."""
        shape = x.shape[-1:]
        params = [
            self.param("scale", self.scale_init, shape, jnp.float32)[None],
            self.param("bias", self.bias_init, shape, jnp.float32)[None],
        ]
        running = [
            self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32),
            self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32),
        ]
        rows = x.reshape(-1, *shape)
        if self.use_running_average:
            (scale, bias), (mean, var) = params, (v.value[None] for v in running)
            y = (rows - mean) * (scale * lax.rsqrt(var + self.epsilon)) + bias
            return y.reshape(x.shape)
        y, *batch = normalize(rows, *params, self.epsilon)
        if not self.is_initializing():
            for old, new in zip(running, batch, strict=True):
                old.value = self.momentum * old.value + (1 - self.momentum) * new[0]
        return y.reshape(x.shape)
