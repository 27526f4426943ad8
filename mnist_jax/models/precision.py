"""Matrix products with bfloat16 operands and float32 sums.

`RULES` maps the names of lax's primitives to functions with the primitives' parameters
that round float32 operands, or return None for operands of other types.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def product(x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiplies matrices of any one dtype into float32, without a gradient.

    XLA:CPU multiplies bfloat16 twice as fast as float32 on CPUs that have the
    instructions, but only into float32: into bfloat16 it is slower than float32.
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.matmul(x, y, preferred_element_type=wide)


def bfloat16_bits(x: jax.Array) -> jax.Array:
    """Rounds float32 to bfloat16 and returns the bits as uint16.

    By integer arithmetic: XLA:CPU converts to bfloat16 one number at a time.
    """
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return ((bits + jnp.uint32(0x8000)) >> jnp.uint32(16)).astype(jnp.uint16)


def as_operand(x: jax.Array, dtype: Any) -> jax.Array:
    """Rounds an array to bfloat16 if that is the dtype of operands; has no gradient."""
    if dtype != jnp.bfloat16 or x.dtype == jnp.bfloat16:
        return x
    if jax.default_backend() == "cpu" and x.dtype == jnp.float32:
        return lax.bitcast_convert_type(bfloat16_bits(x), jnp.bfloat16)
    return x.astype(jnp.bfloat16)


@jax.custom_vjp
def _rounded_matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """Multiplies `x [...,M,K]` and `y [...,K,N]`, rounded to bfloat16, into float32.

    So are the operands of its gradients, but on a CPU those of the gradient of `y`, the
    weights, are float32, which is faster there.
    """
    return _forward(x, y)[0]


def _forward(x: jax.Array, y: jax.Array) -> tuple[jax.Array, tuple]:
    rounded, y = as_operand(x, jnp.bfloat16), as_operand(y, jnp.bfloat16)
    saved = x if jax.default_backend() == "cpu" else rounded
    return product(rounded, y), (saved, y)


def _backward(residuals: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y = residuals
    rounded = as_operand(gradient, jnp.bfloat16)
    if x.dtype == jnp.bfloat16:
        gradient = rounded
    return product(rounded, y.mT), product(x.mT, gradient)


_rounded_matmul.defvjp(_forward, _backward)


def _round_product(
    x: jax.Array, y: jax.Array, *, dimension_numbers: Any, **_: Any
) -> jax.Array | None:
    if {x.dtype, y.dtype} != {jnp.dtype(jnp.float32)}:
        return None
    (inner_x, inner_y), (batch_x, batch_y) = dimension_numbers
    rows = [axis for axis in range(x.ndim) if axis not in (*inner_x, *batch_x)]
    columns = [axis for axis in range(y.ndim) if axis not in (*inner_y, *batch_y)]
    x = x.transpose(*batch_x, *rows, *inner_x)
    y = y.transpose(*batch_y, *inner_y, *columns)
    split, batch = len(batch_x) + len(rows), x.shape[: len(batch_x)]
    shape = *x.shape[:split], *y.shape[len(batch) + len(inner_y) :]
    inner = math.prod(x.shape[split:])
    x = x.reshape(*batch, math.prod(x.shape[len(batch) : split]), inner)
    return _rounded_matmul(x, y.reshape(*batch, inner, -1)).reshape(shape)


def _round_convolution(
    x: jax.Array, kernel: jax.Array, **params: Any
) -> jax.Array | None:
    if {x.dtype, kernel.dtype} != {jnp.dtype(jnp.float32)}:
        return None
    operands = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    params["preferred_element_type"] = None  # float32 would have no gradient
    return lax.conv_general_dilated(*operands, **params).astype(jnp.float32)


RULES: dict[str, Callable[..., jax.Array | None]] = {
    "conv_general_dilated": _round_convolution,
    "dot_general": _round_product,
}
