"""A small ConvNeXt (arXiv:2201.03545) for `--model=examples/convnext.py:ConvNeXt`."""

from flax import linen as nn


class ConvNeXt(nn.Module):
    width: int = 32
    depth: int = 2

    @nn.compact
    def __call__(self, images):  # [B,28,28] float32 -> logits [B,10]
        x = nn.Conv(self.width, (4, 4), strides=4)(images[..., None])
        x = nn.LayerNorm()(x)
        for _ in range(self.depth):
            y = nn.Conv(self.width, (7, 7), feature_group_count=self.width)(x)
            y = nn.Dense(4 * self.width)(nn.LayerNorm()(y))
            x += nn.Dense(self.width)(nn.gelu(y))
        return nn.Dense(10)(nn.LayerNorm()(x.mean(axis=(1, 2))))
