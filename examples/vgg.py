"""A small VGG with batch normalization for `--model=examples/vgg.py:VGG`."""

from flax import linen as nn


class VGG(nn.Module):
    filters: tuple[int, ...] = (16, 32)
    dropout: float = 0.1

    @nn.compact
    def __call__(self, images, train=False):  # [B,28,28] float32 -> logits [B,10]
        x = images[..., None]
        for filters in self.filters:
            for _ in range(2):
                x = nn.Conv(filters, (3, 3))(x)
                x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            x = nn.avg_pool(x, (2, 2), strides=(2, 2))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(10)(x.reshape(len(x), -1))
