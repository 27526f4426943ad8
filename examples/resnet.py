"""A small residual network for `--model=examples/resnet.py:ResNet`."""

from flax import linen as nn


class ResNet(nn.Module):
    width: int = 16
    depth: int = 1  # residual blocks for each size of the image

    @nn.compact
    def __call__(self, images, train=False):  # [B,28,28] float32 -> logits [B,10]
        def conv(x, filters, strides=1, kernel=3):
            x = nn.Conv(filters, (kernel, kernel), strides, use_bias=False)(x)
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

        x = nn.relu(conv(images[..., None], self.width, strides=2))
        for filters in (self.width, 2 * self.width):
            for _ in range(self.depth):
                strides = filters // x.shape[-1]
                y = nn.relu(conv(x, filters, strides))
                if strides > 1:
                    x = conv(x, filters, strides, kernel=1)
                x = nn.relu(x + conv(y, filters))
        return nn.Dense(10)(x.mean(axis=(1, 2)))
