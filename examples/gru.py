"""A GRU over the rows of the image for `--model=examples/gru.py:GRU`."""

from flax import linen as nn


class GRU(nn.Module):
    units: int = 128

    @nn.compact
    def __call__(self, images):  # [B,28,28] float32 -> logits [B,10]
        return nn.Dense(10)(nn.RNN(nn.GRUCell(self.units))(images)[:, -1])
