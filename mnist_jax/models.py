"""The networks, `[B,28,28] float32 -> logits [B,10]`, and how a config makes one."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mnist_jax import fast_conv
from mnist_jax.config import ConvStage, TrainConfig, parse_conv_stage
from mnist_jax.layers import Conv, LSTMLayer

CLASSES = 10
IMAGE_SHAPE = (28, 28)


def _dense_layers(
    x: jax.Array, hidden: tuple[int, ...], rates: tuple[float, ...], train: bool
) -> jax.Array:
    """Adds hidden dense layers with dropout and the output layer: `[B,D] -> [B,10]`."""
    for width, rate in zip(hidden, rates, strict=True):
        x = nn.relu(nn.Dense(width, kernel_init=nn.initializers.glorot_uniform())(x))
        x = nn.Dropout(rate, deterministic=not train)(x)
    return nn.Dense(CLASSES, kernel_init=nn.initializers.glorot_uniform())(x)


def _rates(dropout: tuple[float, ...], layers: int) -> tuple[float, ...]:
    """Gives every layer its dropout rate, where one may stand for all."""
    return dropout * layers if len(dropout) == 1 else dropout


class MLP(nn.Module):
    """Dense layers with ReLU.

    >>> model = MLP(hidden=(32,))
    >>> count_params(model)
    25450
    """

    hidden: tuple[int, ...] = (128, 128)
    dropout: tuple[float, ...] = (0.0,)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits `[B,10]` of images `[B,28,28]`."""
        x = images.reshape(len(images), -1)
        rates = _rates(self.dropout, len(self.hidden))
        return _dense_layers(x, self.hidden, rates, train)


class LSTM(nn.Module):
    """LSTM layers over the rows of the image, the last one's last state, dense layers.

    >>> count_params(LSTM())
    81674
    """

    units: tuple[int, ...] = (128,)
    activation: str = "tanh"
    hidden: tuple[int, ...] = ()
    dropout: tuple[float, ...] = (0.0,)
    kernels: str = "plain"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits `[B,10]` of images `[B,28,28]`."""
        x, last = images, len(self.units) - 1
        rates = _rates(self.dropout, len(self.units) + len(self.hidden))
        for layer, units in enumerate(self.units):
            x = LSTMLayer(
                units,
                activation=self.activation,
                return_sequences=layer < last,
                kernels=self.kernels,
            )(x)
            x = nn.Dropout(rates[layer], deterministic=not train)(x)
        return _dense_layers(x, self.hidden, rates[len(self.units) :], train)


class CNN(nn.Module):
    """Convolution stages, then dense layers.

    >>> count_params(CNN())
    93322
    """

    stages: tuple[ConvStage, ...] = (
        ConvStage(32, pool=2),
        ConvStage(64, pool=2),
        ConvStage(64),
    )
    hidden: tuple[int, ...] = (64,)
    dropout: tuple[float, ...] = (0.0,)
    kernels: str = "plain"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits `[B,10]` of images `[B,28,28]`."""
        fast = self.kernels == "fast"
        x = images[..., None]
        x = fast_conv.to_layout(x) if fast else x
        for stage in self.stages:
            x = Conv(**stage._asdict(), kernels=self.kernels)(x)
        x = fast_conv.from_layout(x) if fast else x
        rates = _rates(self.dropout, len(self.hidden))
        return _dense_layers(x.reshape(len(images), -1), self.hidden, rates, train)


def resolve_kernels(kernels: str) -> str:
    """Decides which form of the layers runs: fast on CPUs, plain elsewhere."""
    if kernels != "auto":
        return kernels
    return "fast" if jax.default_backend() == "cpu" else "plain"


def create_model(config: TrainConfig) -> nn.Module:
    """Returns the network that a config describes."""
    hidden, dropout = config.hidden, config.dropout
    if config.model == "mlp":
        return MLP(hidden, dropout)
    kernels = resolve_kernels(config.kernels)
    if config.model == "lstm":
        return LSTM(config.lstm_units, config.activation, hidden, dropout, kernels)
    return CNN(tuple(map(parse_conv_stage, config.conv)), hidden, dropout, kernels)


def init_params(model: nn.Module, key: jax.Array) -> Any:
    """Returns the initial parameters of a network."""
    return model.init(key, jnp.zeros((1, *IMAGE_SHAPE)))["params"]


def count_params(model: nn.Module) -> int:
    """Counts a network's parameters without computing any."""
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
