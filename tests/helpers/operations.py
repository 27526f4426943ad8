"""Operations on random arrays, with their gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NHWC = ("NHWC", "HWIO", "NHWC")


def arrays(*shapes, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def with_gradients(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Returns a function of the same arguments that also returns their gradients.

    They are those for a random cotangent.
    """

    def run(*args):
        y, pull = jax.vjp(function, *args)
        cotangent = np.random.default_rng(1).normal(size=y.shape)
        return y, *pull(jnp.asarray(cotangent, y.dtype))

    return run


def results(function, *args, jit=jax.jit):
    """Returns a compiled function's value and gradients."""
    return jit(with_gradients(function))(*args)
