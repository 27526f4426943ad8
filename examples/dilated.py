"""Dilated convolutions for `--model=examples/dilated.py:Dilated`."""

from flax import linen as nn


class Dilated(nn.Module):
    width: int = 16
    dilations: tuple[int, ...] = (1, 2, 4)

    @nn.compact
    def __call__(self, images):  # [B,28,28] float32 -> logits [B,10]
        x = nn.relu(nn.Conv(self.width, (3, 3), strides=2)(images[..., None]))
        for dilation in self.dilations:
            x = nn.relu(nn.Conv(self.width, (3, 3), kernel_dilation=dilation)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))
