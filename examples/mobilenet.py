"""Depthwise separable convolutions for `--model=examples/mobilenet.py:MobileNet`."""

from flax import linen as nn


class MobileNet(nn.Module):
    filters: tuple[int, ...] = (16, 32, 32)

    @nn.compact
    def __call__(self, images, train=False):  # [B,28,28] float32 -> logits [B,10]
        def normalize(x):
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.9)
            return nn.relu6(norm(x))

        x = normalize(nn.Conv(16, (3, 3), strides=2, use_bias=False)(images[..., None]))
        for filters in self.filters:
            channels = x.shape[-1]
            depthwise = nn.Conv(
                channels, (3, 3), use_bias=False, feature_group_count=channels
            )
            x = normalize(depthwise(x))
            x = normalize(nn.Conv(filters, (1, 1), use_bias=False)(x))
        return nn.Dense(10)(x.mean(axis=(1, 2)))
