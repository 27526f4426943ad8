"""A custom network for `--model=examples/residual_mlp.py:ResidualMLP`."""

from flax import linen as nn


class ResidualMLP(nn.Module):
    width: int = 128
    depth: int = 3

    @nn.compact
    def __call__(self, images, train=False):  # [B,28,28] float32 -> logits [B,10]
        x = nn.Dense(self.width)(images.reshape(len(images), -1))
        for _ in range(self.depth):
            x += nn.Dense(self.width)(nn.gelu(nn.LayerNorm()(x)))
        return nn.Dense(10)(nn.Dropout(0.1, deterministic=not train)(x))
