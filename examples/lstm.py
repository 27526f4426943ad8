"""Flax's LSTM over the rows of the image for `--model=examples/lstm.py:LSTM`."""

from flax import linen as nn


class LSTM(nn.Module):
    units: int = 64

    @nn.compact
    def __call__(self, images):  # [B,28,28] float32 -> logits [B,10]
        return nn.Dense(10)(nn.RNN(nn.OptimizedLSTMCell(self.units))(images)[:, -1])
