"""The layers of the networks, in plain and fast implementations.

The plain implementations use the operations of Flax and lax, and tests compare the fast
ones with them. The fast implementations are for CPUs (`conv_cpu`, `lstm_cpu`) and GPUs
(`conv_gpu`). All use the same parameters.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from mnist_jax.config import ConvStage
from mnist_jax.models import conv_cpu, conv_gpu, lstm_cpu
from mnist_jax.models.activations import ACTIVATIONS
from mnist_jax.models.precision import matmul


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
    """Convolution, bias, activation and max pooling: `[B,H,W,C] -> [B,h,w,F]`.

    Args:
        x: inputs `[B,H,W,C]`.
        kernel: `[k,k,C,F]`.
        bias: `[F]`.
        strides: stride of the convolution in both directions.
        padding: `VALID` or `SAME`.
        activation: `relu`, `tanh` or `linear`.
        pool: side and stride of the pooling window; 1 for no pooling.
    """
    x = lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(strides, strides),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x = ACTIVATIONS[activation](x + bias[None, None, None, :])
    return x if pool == 1 else nn.max_pool(x, (pool, pool), strides=(pool, pool))


def resolve_impl(impl: str) -> str:
    """Resolves "auto" to "cpu" on CPUs, "gpu" on GPUs and "plain" elsewhere."""
    if impl != "auto":
        return impl
    backend = jax.default_backend()
    return backend if backend in ("cpu", "gpu") else "plain"


def fast_conv_pool(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    strides: int,
    padding: str,
    activation: str,
    pool: int,
) -> jax.Array:
    """`conv_pool` on CPUs, see `conv_cpu.conv_pool`."""
    pads = lax.padtype_to_pads(
        x.shape[1:3], kernel.shape[:2], (strides, strides), padding
    )
    return conv_cpu.conv_pool(
        x,
        kernel,
        bias,
        strides=(strides, strides),
        padding=pads,
        activation=activation,
        pool=(pool, pool),
    )


_CONV_POOL = {"cpu": fast_conv_pool, "gpu": conv_gpu.conv_pool, "plain": conv_pool}


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


class Conv(nn.Module):
    """A convolution stage; its parameters are `kernel [k,k,C,F]` and `bias [F]`.

    They are float32; `dtype` is that of the computation and, if it is bfloat16 and the
    implementation is not the one for CPUs, of the output.
    """

    stage: ConvStage
    impl: str = "plain"  # or as for `resolve_impl`
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        stage, impl = self.stage, resolve_impl(self.impl)
        shape = (stage.kernel, stage.kernel, x.shape[-1], stage.filters)
        # float32 is explicit, as in Flax's layers: the default is float64 under x64.
        kernel = self.param(
            "kernel", nn.initializers.glorot_uniform(), shape, jnp.float32
        )
        bias = self.param("bias", nn.initializers.zeros, (stage.filters,), jnp.float32)
        if impl != "cpu" and self.dtype == jnp.bfloat16:
            x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        return _CONV_POOL[impl](
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
    projected: jax.Array,
    recurrent_kernel: jax.Array,
    activation: str,
    dtype: Any = jnp.float32,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Runs one LSTM step; the gates are ordered input, forget, candidate, output.

    Args:
        carry: hidden state and cell state `(h, c)`, each `[B,U]`.
        projected: input times kernel, plus bias: `[B,4U]`.
        recurrent_kernel: `[U,4U]`.
        activation: for the candidate and the output.
        dtype: of the operands of the product.

    Returns:
        The new `(h, c)`, and `h` again as the output.
    """
    h, c = carry
    gates = projected + matmul(h, recurrent_kernel, dtype)
    i, f, candidate, o = jnp.split(gates, 4, axis=-1)
    activate = ACTIVATIONS[activation]
    c = nn.sigmoid(f) * c + nn.sigmoid(i) * activate(candidate)
    h = nn.sigmoid(o) * activate(c)
    return (h, c), h


def _forget_ones(key: Any, shape: tuple[int], dtype: Any) -> jax.Array:
    """Initializes an LSTM bias: ones for the forget gate, zeros for the others."""
    gate = jnp.arange(shape[0]) // (shape[0] // 4)
    return (gate == 1).astype(dtype)


class LSTMLayer(nn.Module):
    """An LSTM over axis 1: `[B,T,D] -> [B,T,U]`, or `[B,U]` for the last state only.

    The parameters are initialized as in Keras: `kernel [D,4U]` Glorot uniform,
    `recurrent_kernel [U,4U]` orthogonal, `bias [4U]` one for the forget gate and zero
    elsewhere. The initial state is 0.
    """

    units: int
    activation: str
    return_sequences: bool = False
    impl: str = "plain"
    dtype: Any = jnp.float32  # of the operands of matrix products
    unroll: int = 1  # rows per turn of the plain loop

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

        def cell(_: nn.Module, carry: Any, row: jax.Array) -> Any:
            return lstm_cell(carry, row, recurrent_kernel, self.activation, self.dtype)

        # All rows at once: they do not depend on the state.
        flat = rows.reshape(-1, inputs)
        projected = matmul(flat, kernel, self.dtype) + bias[None, :]
        projected = projected.reshape(*rows.shape[:2], width)
        zeros = jnp.zeros((rows.shape[0], self.units), projected.dtype)
        scan = nn.scan(cell, in_axes=1, out_axes=1, unroll=self.unroll)
        (h, _), states = scan(self, (zeros, zeros), projected)
        return states if self.return_sequences else h
