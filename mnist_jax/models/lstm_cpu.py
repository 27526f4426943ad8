"""Fast CPU implementation of an LSTM layer.

It is faster than differentiating a `lax.scan` over the plain cell because:

- the product with the inputs is one matmul for all rows, before the loop;
- sigmoid(z) = tanh(z / 2) / 2 + 1/2, with the inner factor folded into the weights, so
  that one tanh over [B,4U] computes all four gates (with relu: one division);
- the forward loop also computes the factors for the backward loop, in place of the row
  it has just read, and the backward loop overwrites them with its gradients: one
  [T,B,4U] array serves all three and is never copied;
- the gradients of both kernels and the bias are one matmul after the backward loop.

Internally, time is the first axis: [T,B,...]. The transposes at entry and exit cancel
between stacked layers.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mnist_jax.models.activations import ACTIVATIONS
from mnist_jax.models.precision import as_operand, bfloat16_bits, product

CANDIDATE = 2  # index in i, f, c, o of the only gate that is not a sigmoid


class _Row(NamedTuple):
    """The gates, cell state, activated cell state and output of one row, each [B,U]."""

    i: jax.Array
    f: jax.Array
    g: jax.Array
    o: jax.Array
    c: jax.Array
    y: jax.Array
    h: jax.Array


class _Saved(NamedTuple):
    """The residuals of all rows for the backward pass.

    With d_h and d_c the gradients of a row's output and cell state, d_z is `factors`
    times (d_c, d_c, d_c, d_h), and d_c is d_h * slopes plus d_c * forgets of the next
    row.
    """

    factors: jax.Array  # [T,B,4U]
    slopes: jax.Array  # [T,B,U]
    forgets: jax.Array  # [T,B,U]


def lstm(
    x: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    *,
    activation: str,
    return_sequences: bool,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """Runs one LSTM layer over the rows of `x`, from a zero state.

    Args:
        x: [B,T,D] float32.
        kernel: [D,4U] float32, gates in the order i, f, c (candidate), o.
        recurrent_kernel: [U,4U] float32.
        bias: [4U] float32.
        activation: "tanh" or "relu", for the candidate and the output.
        return_sequences: whether to return the states of all rows or of the last one.
        dtype: of the operands of products and of the residuals, float32 or bfloat16.

    Returns:
        [B,T,U] float32 if `return_sequences`, else [B,U].

    Example:
        >>> x, kernel = jnp.ones((2, 28, 3)), jnp.ones((3, 20))
        >>> recurrent_kernel, bias = jnp.ones((5, 20)), jnp.zeros(20)
        >>> static = dict(activation="tanh", return_sequences=False)
        >>> lstm(x, kernel, recurrent_kernel, bias, **static).shape
        (2, 5)
    """
    static = activation, return_sequences, dtype
    return _lstm(x, kernel, recurrent_kernel, bias, *static)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _lstm(
    x: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    activation: str,
    return_sequences: bool,
    dtype: Any,
) -> jax.Array:
    """Runs the layer without saving residuals, for when no gradient is needed."""
    z, recurrent, bias = _project(x, kernel, recurrent_kernel, bias, dtype)

    def body(carry: tuple, z: jax.Array) -> tuple[tuple, Any]:
        h, c = carry
        row = _cell(z + product(as_operand(h, dtype), recurrent) + bias, c, activation)
        return (row.h, row.c), row.h if return_sequences else None

    no_state = jnp.zeros_like(z[0, :, : recurrent.shape[0]])  # [B,U]
    first = _cell(z[0] + bias, no_state, activation)
    last, states = lax.scan(body, (first.h, first.c), z[1:])
    if not return_sequences:
        return last[0]
    return jnp.concatenate([first.h[None], states]).swapaxes(0, 1)


def _lstm_forward(
    x: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    activation: str,
    return_sequences: bool,
    dtype: Any,
) -> tuple[jax.Array, tuple]:
    """Runs the layer and saves the residuals for the backward pass."""
    z, recurrent, bias = _project(x, kernel, recurrent_kernel, bias, dtype)
    z = _store(z, dtype)
    no_state = jnp.zeros_like(z[..., : recurrent.shape[0]])  # [T,B,U]
    steps, batch, units = no_state.shape
    inputs = x.shape[-1]
    # Column (t,b) is (x_t, h_{t-1}, 1), which the weights multiply at row t.
    operands = jnp.concatenate(
        [
            _store(x.transpose(2, 1, 0).reshape(inputs, steps * batch), dtype),
            jnp.zeros((units, steps * batch), z.dtype),
            _store(jnp.ones((1, steps * batch), x.dtype), dtype),
        ]
    )  # [D+U+1,T*B]

    no_row = _load(no_state[0])
    first = _cell(_load(z[0]) + bias, no_row, activation)
    saved = _save(_Saved(z, no_state, no_state), 0, first, no_row, activation)
    states = _write(no_state, first.h, 0) if return_sequences else None

    def body(t: jax.Array, carry: tuple) -> tuple:
        h, c, saved, operands, states = carry
        z = _load(saved.factors[t]) + product(_operand(h), recurrent) + bias
        row = _cell(z, c, activation)
        saved = _save(saved, t, row, c, activation)
        # Transposed here, while in cache: saves 2-3 % of a training step.
        operands = lax.dynamic_update_slice(operands, h.T, (inputs, t * batch))
        if return_sequences:
            states = _write(states, row.h, t)
        return _store(row.h, dtype), row.c, saved, operands, states

    carry = (_store(first.h, dtype), first.c, saved, operands, states)
    h, _, saved, operands, states = lax.fori_loop(1, steps, body, carry)
    outputs = _load(states).swapaxes(0, 1) if return_sequences else _load(h)
    return outputs, (kernel, recurrent_kernel, saved, operands)


def _lstm_backward(
    activation: str,
    return_sequences: bool,
    dtype: Any,
    residuals: tuple,
    d_outputs: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns the gradients of x, kernel, recurrent kernel and bias."""
    kernel, recurrent_kernel, (factors, slopes, forgets), operands = residuals
    steps, batch, width = factors.shape
    inputs = kernel.shape[0]
    d_states = d_outputs.swapaxes(0, 1) if return_sequences else None
    # Transposed once, not in each product: 46 us against 75 us on one core at B = 64,
    # U = 128.
    transposed = as_operand(recurrent_kernel.T, dtype)

    def times(d: jax.Array, factor: jax.Array) -> jax.Array:
        # Where relu is flat the gradient is 0, even if the state overflowed to inf.
        if activation == "relu":
            return jnp.where(factor == 0, 0, d * factor)
        return d * factor

    def cell(d_h: jax.Array, d_c: jax.Array, factors: jax.Array) -> jax.Array:
        i, f, g, o = jnp.split(factors, 4, axis=-1)
        products = [d_c * i, d_c * f, times(d_c, g), d_h * o]
        return _store(jnp.concatenate(products, axis=-1), dtype)

    def body(k: jax.Array, carry: tuple) -> tuple:
        d_z, d_c, factors = carry
        t = steps - 1 - k
        d_h = product(_operand(d_z), transposed)
        if d_states is not None:
            d_h = d_h + d_states[t]
        d_c = times(d_h, _load(slopes[t])) + d_c * _load(forgets[t + 1])
        d_z = cell(d_h, d_c, _load(factors[t]))
        return d_z, d_c, _write(factors, d_z, t)

    d_h = d_outputs if d_states is None else d_states[-1]
    d_c = times(d_h, _load(slopes[-1]))
    d_z = cell(d_h, d_c, _load(factors[-1]))
    carry = (d_z, d_c, _write(factors, d_z, steps - 1))
    d_z = _operand(lax.fori_loop(1, steps, body, carry)[2]).reshape(-1, width)

    d_weights = product(_operand(operands), d_z)  # [D+U+1,4U]
    d_x = product(d_z, as_operand(kernel.T, dtype))
    d_x = d_x.reshape(steps, batch, inputs).swapaxes(0, 1)
    d_kernel, d_recurrent = d_weights[:inputs], d_weights[inputs:-1]
    return d_x, d_kernel, d_recurrent, d_weights[-1]


_lstm.defvjp(_lstm_forward, _lstm_backward)


def _gate_columns(sigmoid: float, candidate: float, units: int) -> np.ndarray:
    """Returns [1,4U] with one value for the sigmoids and one for the candidate."""
    numbers = np.full(4, sigmoid, np.float32)
    numbers[CANDIDATE] = candidate
    return np.repeat(numbers, units)[None, :]


def _store(values: jax.Array, dtype: Any) -> jax.Array:
    """Returns values as the loops store them: with bfloat16, its bits as uint16.

    XLA:CPU has no instruction to update a slice of bfloat16: it would convert the whole
    array to float32 and back in each iteration.
    """
    return bfloat16_bits(values) if dtype == jnp.bfloat16 else values


def _operand(stored: jax.Array) -> jax.Array:
    """Returns stored values as an operand of a product, float32 or bfloat16."""
    if stored.dtype != jnp.uint16:
        return stored
    return lax.bitcast_convert_type(stored, jnp.bfloat16)


def _load(stored: jax.Array) -> jax.Array:
    """Returns stored values as float32."""
    if stored.dtype != jnp.uint16:
        return stored
    return lax.bitcast_convert_type(
        stored.astype(jnp.uint32) << jnp.uint32(16), jnp.float32
    )


def _project(
    x: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    dtype: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Multiplies all rows by the kernel, and scales the sigmoids' columns by 1/2.

    Returns:
        The product [T,B,4U], the recurrent kernel [U,4U] as `dtype` and the bias
        [1,4U], all scaled.
    """
    batch, steps, inputs = x.shape
    scale = _gate_columns(0.5, 1.0, recurrent_kernel.shape[0])
    rows = x.swapaxes(0, 1).reshape(steps * batch, inputs)
    z = product(as_operand(rows, dtype), as_operand(kernel * scale, dtype))
    recurrent = as_operand(recurrent_kernel * scale, dtype)
    return z.reshape(steps, batch, -1), recurrent, bias[None, :] * scale


def _cell(z: jax.Array, c_before: jax.Array, activation: str) -> _Row:
    """Computes a row from scaled pre-activations [B,4U] and the previous cell state."""
    i, f, g, o = jnp.split(_activate_gates(z, activation), 4, axis=-1)
    c = f * c_before + i * g
    y = ACTIVATIONS[activation](c)
    return _Row(i, f, g, o, c, y, o * y)


def _activate_gates(z: jax.Array, activation: str) -> jax.Array:
    """Returns the gates [B,4U] of scaled pre-activations, as one array.

    XLA repeats cheap arithmetic in each consumer. If several consumers read `z` from an
    array that the same loop writes, XLA copies the whole array in each iteration: 25 ms
    per training step instead of 16, for two layers of 128 at batch 128 on two cores.
    XLA does not repeat tanh or division, so one of these must be the last to read `z`.
    """
    units = z.shape[-1] // 4
    if activation == "tanh":
        scale, offset = _gate_columns(0.5, 1.0, units), _gate_columns(0.5, 0.0, units)
        return jnp.tanh(z) * scale + offset
    is_candidate = _gate_columns(0.0, 1.0, units) == 1
    numerators = jnp.where(is_candidate, jax.nn.relu(z), 1)
    return numerators / jnp.where(is_candidate, 1, 1 + jnp.exp(-2 * z))


def _save(
    saved: _Saved, t: jax.Array | int, row: _Row, c_before: jax.Array, activation: str
) -> _Saved:
    """Stores the residuals of row `t`."""
    i, f, g, o, _, y, _ = row
    local = (
        g * i * (1 - i),
        c_before * f * (1 - f),
        _times_slope(i, g, activation),
        y * o * (1 - o),
    )
    # Four in-place writes: concatenating first makes a training step 2-4 % longer.
    factors = saved.factors
    for gate, factor in enumerate(local):
        factors = _write(factors, factor, t, gate * i.shape[-1])
    slopes = _write(saved.slopes, _times_slope(o, y, activation), t)
    return _Saved(factors, slopes, _write(saved.forgets, f, t))


def _times_slope(values: jax.Array, activated: jax.Array, activation: str) -> jax.Array:
    """Multiplies by the slope of the activation whose output is `activated`."""
    if activation == "relu":
        return jnp.where(activated > 0, values, 0)
    return values * (1 - activated * activated)


def _write(
    rows: jax.Array, values: jax.Array, t: jax.Array | int, column: int = 0
) -> jax.Array:
    """Writes [B,N] into row `t` of [T,B,M], starting at `column`."""
    if rows.dtype == jnp.uint16 != values.dtype:
        values = _store(values, jnp.bfloat16)
    return lax.dynamic_update_slice(rows, values[None], (t, 0, column))
