"""A small vision transformer (arXiv:2010.11929) for `--model=examples/vit.py:ViT`."""

from flax import linen as nn


class ViT(nn.Module):
    width: int = 64
    depth: int = 2
    heads: int = 4

    @nn.compact
    def __call__(self, images):  # [B,28,28] float32 -> logits [B,10]
        x = nn.Conv(self.width, (7, 7), strides=7)(images[..., None])
        x = x.reshape(len(x), -1, self.width)
        x += self.param("position", nn.initializers.normal(0.02), x.shape[1:])[None]
        for _ in range(self.depth):
            y = nn.LayerNorm()(x)
            x += nn.MultiHeadDotProductAttention(self.heads)(y)
            y = nn.Dense(2 * self.width)(nn.LayerNorm()(x))
            x += nn.Dense(self.width)(nn.gelu(y))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(axis=1))
