"""A LeNet for `--model=examples/lenet.py:LeNet`."""

from flax import linen as nn


class LeNet(nn.Module):
    filters: tuple[int, ...] = (16, 32)
    units: int = 128

    @nn.compact
    def __call__(self, images):  # [B,28,28] float32 -> logits [B,10]
        x = images[..., None]
        for filters in self.filters:
            x = nn.relu(nn.Conv(filters, (5, 5))(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(self.units)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)
