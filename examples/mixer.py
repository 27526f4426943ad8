"""An MLP-Mixer (arXiv:2105.01601) for `--model=examples/mixer.py:Mixer`."""

from flax import linen as nn


class Mixer(nn.Module):
    width: int = 64
    depth: int = 4
    patch: int = 7  # side of a patch in pixels, a divisor of 28

    @nn.compact
    def __call__(self, images):  # [B,28,28] float32 -> logits [B,10]
        def mlp(x, hidden):
            return nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(hidden)(x)))

        side = 28 // self.patch
        x = images.reshape(-1, side, self.patch, side, self.patch).swapaxes(2, 3)
        # A black patch without a bias would be 0, where LayerNorm's slope is 1000.
        embed = nn.Dense(self.width, bias_init=nn.initializers.normal(0.1))
        x = embed(x.reshape(-1, side**2, self.patch**2))
        for _ in range(self.depth):
            x += mlp(nn.LayerNorm()(x).swapaxes(1, 2), 2 * side**2).swapaxes(1, 2)
            x += mlp(nn.LayerNorm()(x), 2 * self.width)
        return nn.Dense(10)(nn.LayerNorm()(x).mean(axis=1))
