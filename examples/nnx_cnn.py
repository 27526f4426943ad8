"""A Flax NNX module for `--model=examples/nnx_cnn.py:CNN`."""

from flax import nnx


class CNN(nnx.Module):
    def __init__(self, width: int = 16, rate: float = 0.2, *, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, width, (5, 5), 3, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.dense = nnx.Linear(10 * 10 * width, 10, rngs=rngs)

    def __call__(self, images):  # [B,28,28] float32 -> logits [B,10]
        x = nnx.relu(self.norm(self.conv(images[..., None])))
        return self.dense(self.dropout(x.reshape(len(images), -1)))
