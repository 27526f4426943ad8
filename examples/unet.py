"""A U-Net's way down and up again for `--model=examples/unet.py:UNet`."""

import jax.numpy as jnp
from flax import linen as nn


class UNet(nn.Module):
    width: int = 8

    @nn.compact
    def __call__(self, images):  # [B,28,28] float32 -> logits [B,10]
        x = nn.relu(nn.Conv(self.width, (3, 3))(images[..., None]))
        y = nn.relu(nn.Conv(2 * self.width, (3, 3), strides=2)(x))
        y = nn.relu(nn.ConvTranspose(self.width, (3, 3), strides=(2, 2))(y))
        x = nn.relu(nn.Conv(self.width, (3, 3))(jnp.concatenate([x, y], axis=-1)))
        return nn.Dense(10)(nn.max_pool(x, (4, 4), strides=(4, 4)).reshape(len(x), -1))
