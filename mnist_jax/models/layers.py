"""The layers of the networks that Flax does not have."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mnist_jax.models import lstm_cpu
from mnist_jax.models.activations import ACTIVATIONS


def resolve_impl(impl: str) -> str:
    """Resolves "auto" to "cpu" on CPUs, "gpu" on GPUs and "plain" elsewhere."""
    if impl != "auto":
        return impl
    backend = jax.default_backend()
    return backend if backend in ("cpu", "gpu") else "plain"


class Dropout(nn.Module):
    """Dropout whose mask for an image depends only on the image's index in the batch.

    A batch therefore gets the same masks on any number of devices. `nn.Dropout` takes
    as long, but sees only one device's share of the batch.
    """

    rate: float

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, batch_offset: jax.Array | int
    ) -> jax.Array:
        """Drops values of `x [B,...]`, whose first image has index `batch_offset`."""
        if not train or self.rate == 0.0:
            return x
        key, keep = self.make_rng("dropout"), 1.0 - self.rate

        def mask(index: jax.Array) -> jax.Array:
            return jax.random.bernoulli(
                jax.random.fold_in(key, index), keep, x.shape[1:]
            )

        indices = batch_offset + jnp.arange(len(x))
        return jnp.where(jax.vmap(mask)(indices), x / keep, 0.0)


def _forget_ones(key: Any, shape: tuple[int], dtype: Any) -> jax.Array:
    """Initializes an LSTM bias: ones for the forget gate, zeros for the others."""
    gate = jnp.arange(shape[0]) // (shape[0] // 4)
    return (gate == 1).astype(dtype)


class LSTMLayer(nn.Module):
    """An LSTM over axis 1: `[B,T,D] -> [B,T,U]`, or `[B,U]` for the last state only.

    The parameters are initialized as in Keras: `kernel [D,4U]` Glorot uniform,
    `recurrent_kernel [U,4U]` orthogonal, `bias [4U]` one for the forget gate and zero
    elsewhere; the gates are ordered input, forget, candidate, output. The initial state
    is 0.
    """

    units: int
    activation: str
    return_sequences: bool = False
    impl: str = "plain"  # or "cpu"; with others it is plain too
    dtype: Any = jnp.float32  # of the operands of its products, with "cpu"
    unroll: bool = False  # the plain loop

    @nn.compact
    def __call__(self, rows: jax.Array) -> jax.Array:
        width, inputs = 4 * self.units, rows.shape[-1]
        uniform = nn.initializers.glorot_uniform()
        orthogonal = nn.initializers.orthogonal()
        kernel = self.param("kernel", uniform, (inputs, width), jnp.float32)
        recurrent_kernel = self.param(
            "recurrent_kernel", orthogonal, (self.units, width), jnp.float32
        )
        bias = self.param("bias", _forget_ones, (width,), jnp.float32)
        if self.impl == "cpu":
            return lstm_cpu.lstm(
                rows,
                kernel,
                recurrent_kernel,
                bias,
                activation=self.activation,
                return_sequences=self.return_sequences,
                dtype=self.dtype,
            )

        activate = ACTIVATIONS[self.activation]

        def cell(_: nn.Module, carry: Any, projected: jax.Array) -> Any:
            h, c = carry
            gates = projected + h @ recurrent_kernel
            i, f, candidate, o = jnp.split(gates, 4, axis=-1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * activate(candidate)
            h = nn.sigmoid(o) * activate(c)
            return (h, c), h

        # All rows at once: they do not depend on the state.
        projected = rows.reshape(-1, inputs) @ kernel + bias[None, :]
        projected = projected.reshape(*rows.shape[:2], width)
        zeros = jnp.zeros((rows.shape[0], self.units), projected.dtype)
        scan = nn.scan(cell, in_axes=1, out_axes=1, unroll=self.unroll)
        (h, _), states = scan(self, (zeros, zeros), projected)
        return states if self.return_sequences else h
