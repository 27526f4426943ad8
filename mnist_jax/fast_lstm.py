"""One LSTM layer over time, written for speed on CPU and equal to the plain cell."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

Residuals = tuple[jax.Array, ...]


def lstm(
    x: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    *,
    activation: str,
    return_sequences: bool,
) -> jax.Array:
    """Run one LSTM layer from a zero state over all rows of `x`.

    Args:
      x: [B,T,D] float32.
      kernel: [D,4U], gates in the order i, f, c (candidate), o.
      recurrent_kernel: [U,4U].
      bias: [4U].
      activation: "tanh" or "relu", for the candidate and the output.
      return_sequences: whether to return every state or the last one only.

    Returns:
      [B,T,U] if `return_sequences`, else [B,U].
    """
    if activation not in ("tanh", "relu"):
        raise ValueError(f"activation={activation!r}: must be 'tanh' or 'relu'")
    outputs = _lstm(activation, x, kernel, recurrent_kernel, bias, return_sequences)
    return outputs


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 5))
def _lstm(activation, x, kernel, recurrent_kernel, bias, return_sequences):
    return _forward(activation, x, kernel, recurrent_kernel, bias, return_sequences)[0]


def _split(gates):
    return jnp.split(gates, 4, axis=-1)


def _activate(activation, z):
    t = jnp.tanh(z)
    i, f, g, o = _split(t)
    if activation == "relu":
        g = jax.nn.relu(_split(z)[2])
    return jnp.concatenate([0.5 * i + 0.5, 0.5 * f + 0.5, g, 0.5 * o + 0.5], axis=-1)


def _act(activation, c):
    return jnp.tanh(c) if activation == "tanh" else jax.nn.relu(c)


def _times_slope(activation, y, d):
    """Multiply `d` by the slope of the activation whose value is `y`."""
    if activation == "tanh":
        return d * (1 - y * y)
    return jnp.where(y > 0, d, 0)


def _forward(activation, x, kernel, recurrent_kernel, bias, return_sequences):
    batch, steps, inputs = x.shape
    units = recurrent_kernel.shape[0]
    scale = jnp.repeat(jnp.array([0.5, 0.5, 1.0, 0.5], x.dtype), units)
    rows = x.swapaxes(0, 1).reshape(steps * batch, inputs)
    z_input = rows @ (kernel * scale[None, :]) + (bias * scale)[None, :]
    z_input = z_input.reshape(steps, batch, 4 * units)
    recurrent = recurrent_kernel * scale[None, :]

    def cell(c, z):
        gates = _activate(activation, z)
        i, f, g, o = _split(gates)
        c = i * g if c is None else f * c + i * g
        return o * _act(activation, c), c, gates

    def body(carry, z):
        h, c = carry
        z = lax.optimization_barrier(z + h @ recurrent)
        h, c, gates = cell(c, z)
        return (h, c), (h, c, gates)

    first = cell(None, z_input[0])
    _, rest = lax.scan(body, first[:2], z_input[1:])
    hs, cs, gates = (
        jnp.concatenate([a[None], b]) for a, b in zip(first, rest, strict=True)
    )
    outputs = hs.swapaxes(0, 1) if return_sequences else hs[-1]
    return outputs, (x, kernel, recurrent_kernel, hs, cs, gates)


def _backward(activation, return_sequences, residuals, d_outputs):
    x, kernel, recurrent_kernel, hs, cs, gates = residuals
    steps, batch, units = hs.shape
    zeros = jnp.zeros((batch, units), x.dtype)
    cs_before = jnp.concatenate([zeros[None], cs[:-1]])
    d_rows = d_outputs.swapaxes(0, 1) if return_sequences else None
    transposed = recurrent_kernel.T

    def body(carry, row):
        dh, dc = carry
        gates, c, c_before, d_row = row
        if d_row is not None:
            dh = dh + d_row
        i, f, g, o = _split(gates)
        y = _act(activation, c)
        dc = dc + _times_slope(activation, y, dh * o)
        dz = [
            dc * g * i * (1 - i),
            dc * c_before * f * (1 - f),
            _times_slope(activation, g, dc * i),
            dh * y * o * (1 - o),
        ]
        dz = lax.optimization_barrier(jnp.concatenate(dz, axis=-1))
        return (dz @ transposed, dc * f), dz

    start = (zeros if return_sequences else d_outputs, zeros)
    _, dz = lax.scan(body, start, (gates, cs, cs_before, d_rows), reverse=True)
    rows = x.swapaxes(0, 1).reshape(steps * batch, -1)
    dz_rows = dz.reshape(steps * batch, 4 * units)
    d_kernel = rows.T @ dz_rows
    d_recurrent = hs[:-1].reshape(-1, units).T @ dz[1:].reshape(-1, 4 * units)
    d_x = (dz_rows @ kernel.T).reshape(steps, batch, -1).swapaxes(0, 1)
    return d_x, d_kernel, d_recurrent, dz_rows.sum(0)


def _lstm_fwd(activation, x, kernel, recurrent_kernel, bias, return_sequences):
    return _forward(activation, x, kernel, recurrent_kernel, bias, return_sequences)


_lstm.defvjp(_lstm_fwd, _backward)
