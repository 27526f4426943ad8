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


def _mean(x: jax.Array) -> jax.Array:
    """Returns the mean of the rows of `x [N,C]`, as `[1,C]`."""
    return jnp.full((1, len(x)), 1 / len(x), x.dtype) @ x


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
        The outputs `[N,C]`, and the mean and the variance `[1,C]`, through which no
        gradient flows.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> Any:
    mean = _mean(x)
    variance = jnp.maximum(_mean(x * x) - mean * mean, 0.0)
    inverse = lax.rsqrt(variance + epsilon)
    y = (x - mean) * (scale * inverse) + bias
    return (y, mean, variance), (x, scale, mean, inverse)


def _backward(epsilon: float, saved: Any, gradients: Any) -> Any:
    del epsilon
    x, scale, mean, inverse = saved
    dy = gradients[0]
    dy_mean = _mean(dy)
    slope = inverse * (_mean(dy * x) - mean * dy_mean)  # mean of dy times normalized x
    dx = (scale * inverse) * (dy - dy_mean - (x - mean) * (inverse * slope))
    return dx, len(x) * slope, len(x) * dy_mean


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
