"""A Flax NNX module for `--model=examples/nnx_cnn.py:CNN`."""

from flax import nnx


class CNN(nnx.Module):
    def __init__(self, width: int = 16, rate: float = 0.2, *, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(1, width, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(width, 2 * width, (3, 3), rngs=rngs)
        self.dropout = nnx.Dropout(rate, rngs=rngs)
        self.dense = nnx.Linear(7 * 7 * 2 * width, 10, rngs=rngs)

    def __call__(self, images):  # [B,28,28] float32 -> logits [B,10]
        x = images[..., None]
        for conv in (self.conv1, self.conv2):
            x = nnx.max_pool(nnx.relu(conv(x)), (2, 2), strides=(2, 2))
        return self.dense(self.dropout(x.reshape(len(images), -1)))
