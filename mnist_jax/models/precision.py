"""Matrix products with bfloat16 operands and float32 sums."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def matmul(x: jax.Array, y: jax.Array, dtype: Any) -> jax.Array:
    """Returns the product of `x [M,K]` and `y [K,N]` as float32 `[M,N]`.

    Args:
        x: left operand.
        y: right operand.
        dtype: float32, or bfloat16 to round the operands of this product and of its two
            gradients; sums are in float32.
    """
    return _rounded_matmul(x, y) if dtype == jnp.bfloat16 else x @ y


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiplies matrices of any one dtype into float32, without a gradient.

    XLA:CPU multiplies bfloat16 twice as fast as float32 on CPUs that have the
    instructions, but only into float32: into bfloat16 it is slower than float32.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.matmul(x, y, preferred_element_type=wide)


def as_operand(x: jax.Array, dtype: Any) -> jax.Array:
    """Rounds an array to bfloat16 if that is the dtype of operands."""
    return x.astype(dtype) if dtype == jnp.bfloat16 else x


def dot_general(
    x: jax.Array, kernel: jax.Array, *_: Any, dtype: Any, **__: Any
) -> jax.Array:
    """`matmul` with the signature that `nn.Dense(dot_general=...)` calls."""
    return matmul(x, kernel, dtype)


@jax.custom_vjp
def _rounded_matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    return _forward(x, y)[0]


def _forward(x: jax.Array, y: jax.Array) -> tuple[jax.Array, tuple]:
    x, y = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    return product(x, y), (x, y)


def _backward(residuals: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y = residuals
    gradient = gradient.astype(jnp.bfloat16)
    # XLA:CPU has no fast product of a transposed left operand: transpose it in memory.
    transposed = lax.optimization_barrier(x.T)
    return product(gradient, y.T), product(transposed, gradient)


_rounded_matmul.defvjp(_forward, _backward)
