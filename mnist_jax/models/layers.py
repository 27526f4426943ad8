"""The building blocks of the networks, each in a plain and a fast form.

The plain forms are written with Flax's and lax's own operations: they are the reference
that tests hold the fast forms to, and what runs on GPUs and TPUs. The fast forms
(`conv_cpu`, `lstm_cpu`) are for CPUs. Both use the same parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from mnist_jax.config import ConvStage
from mnist_jax.models import conv_cpu, lstm_cpu

_ACTIVATE = {"relu": nn.relu, "tanh": jnp.tanh, "linear": lambda x: x}


def conv_pool(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    strides: int,
    padding: str,
    activation: str,
    pool: int,
) -> jax.Array:
    """Convolves, adds the bias, activates and max-pools: `[B,H,W,C] -> [B,h,w,F]`.

    Args:
        x: images `[B,H,W,C]`.
        kernel: `[k,k,C,F]`.
        bias: `[F]`.
        strides: of the convolution, in both directions.
        padding: `VALID` or `SAME`.
        activation: `relu`, `tanh` or `linear`.
        pool: window and stride of the max pooling; 1 is none.
    """
    x = lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = _ACTIVATE[activation](x + bias[None, None, None, :])
    return x if pool == 1 else nn.max_pool(x, (pool, pool), strides=(pool, pool))


class Dropout(nn.Module):
    """Dropout whose mask of an image depends on the image's index in the batch alone.

    So a batch has the same masks on however many devices it is spread. `nn.Dropout`
    takes as long, and knows only a device's share of the batch.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, batch_offset: jax.Array | int
    ) -> jax.Array:
        """Drops values of `x [B,...]`, whose first image is number `batch_offset`."""
        if not train or self.rate == 0.0:
            return x
        key, keep = self.make_rng("dropout"), 1.0 - self.rate

        def mask(index: jax.Array) -> jax.Array:
            return jax.random.bernoulli(
                jax.random.fold_in(key, index), keep, x.shape[1:]
            )

        indices = batch_offset + jnp.arange(len(x))
        return jnp.where(jax.vmap(mask)(indices), x / keep, 0.0)


class Conv(nn.Module):
    """A convolution stage; its parameters are `kernel [k,k,C,F]` and `bias [F]`."""

    stage: ConvStage
    impl: str = "plain"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        stage = self.stage
        shape = (stage.kernel, stage.kernel, x.shape[-1], stage.filters)
        # The type is named as in Flax's own layers: initializers take the widest.
        kernel = self.param(
            "kernel", nn.initializers.glorot_uniform(), shape, jnp.float32
        )
        bias = self.param("bias", nn.initializers.zeros, (stage.filters,), jnp.float32)
        run = conv_cpu.conv_pool if self.impl == "fast" else conv_pool
        return run(
            x,
            kernel,
            bias,
            strides=stage.strides,
            padding=stage.padding,
            activation=stage.activation,
            pool=stage.pool,
        )


def lstm_cell(
    carry: tuple[jax.Array, jax.Array],
    row: jax.Array,
    kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    activation: str,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Advances an LSTM by one row: gates in the order input, forget, candidate, output.

    Args:
        carry: state and cell `(h, c)`, each `[B,U]`.
        row: input `[B,D]`.
        kernel: `[D,4U]`.
        recurrent_kernel: `[U,4U]`.
        bias: `[4U]`.
        activation: of the candidate and of the cell on its way out.

    Returns:
        The new `(h, c)`, and `h` again as the row's output.
    """
    h, c = carry
    gates = row @ kernel + h @ recurrent_kernel + bias[None, :]
    i, f, candidate, o = jnp.split(gates, 4, axis=-1)
    activate = _ACTIVATE[activation]
    c = nn.sigmoid(f) * c + nn.sigmoid(i) * activate(candidate)
    h = nn.sigmoid(o) * activate(c)
    return (h, c), h


def _forget_ones(key: Any, shape: tuple[int], dtype: Any) -> jax.Array:
    """Initialises an LSTM's bias: ones for the forget gate, zeros for the others."""
    gate = jnp.arange(shape[0]) // (shape[0] // 4)
    return (gate == 1).astype(dtype)


class LSTMLayer(nn.Module):
    """An LSTM over axis 1: `[B,T,D] -> [B,T,U]`, or `[B,U]` for the last state alone.

    Parameters `kernel [D,4U]` (Glorot uniform), `recurrent_kernel [U,4U]` (orthogonal)
    and `bias [4U]` (forget gate one) start as in Keras; the initial state is 0.
    """

    units: int
    activation: str
    return_sequences: bool = False
    impl: str = "plain"

    @nn.compact
    def __call__(self, rows: jax.Array) -> jax.Array:
        width, inputs = 4 * self.units, rows.shape[-1]
        uniform = nn.initializers.glorot_uniform()
        orthogonal = nn.initializers.orthogonal()
        params = (
            self.param("kernel", uniform, (inputs, width), jnp.float32),
            self.param(
                "recurrent_kernel", orthogonal, (self.units, width), jnp.float32
            ),
            self.param("bias", _forget_ones, (width,), jnp.float32),
        )
        if self.impl == "fast":
            return lstm_cpu.lstm(
                rows,
                *params,
                activation=self.activation,
                return_sequences=self.return_sequences,
            )

        def cell(_: nn.Module, carry: Any, row: jax.Array) -> Any:
            return lstm_cell(carry, row, *params, self.activation)

        zeros = jnp.zeros((rows.shape[0], self.units), rows.dtype)
        (h, _), states = nn.scan(cell, in_axes=1, out_axes=1)(
            self, (zeros, zeros), rows
        )
        return states if self.return_sequences else h
