"""cuDNN's LSTM as a custom network, to compare with this project's on a GPU."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental import rnn

from mnist_jax.data.types import CLASSES

UNITS = 128


class CudnnLSTM(nn.Module):
    """One LSTM layer over the rows of the image, then a dense layer."""

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns the logits `[B,10]` of images `[B,28,28]`."""
        batch, rows, inputs = images.shape
        weights = self.param(
            "weights", rnn.init_lstm_weight, inputs, UNITS, 1, False
        )  # [n], in cuDNN's layout
        zeros = jnp.zeros((1, batch, UNITS), jnp.float32)
        lengths = jnp.full(batch, rows, jnp.int32)
        static = dict(input_size=inputs, hidden_size=UNITS, num_layers=1)
        _, last, _ = rnn.lstm(
            images,
            zeros,
            zeros,
            weights,
            lengths,
            **static,
            dropout=0.0,
            bidirectional=False,
        )
        return nn.Dense(CLASSES)(last[0])
