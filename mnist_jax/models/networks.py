"""The networks, `[B,28,28] float32 -> logits [B,10]`, and how a config makes one."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mnist_jax.config import ConvStage, TrainConfig, parse_conv_stage
from mnist_jax.errors import InputError
from mnist_jax.models.layers import Conv, Dropout, LSTMLayer

CLASSES = 10
IMAGE_SHAPE = (28, 28)


# Own names of layers, as pairs of the usual name and the own one.
Names = tuple[tuple[str, str], ...]


def _name(names: Names, kind: str, index: int) -> str:
    """Returns the name of the layer of a kind that comes at an index."""
    usual = f"{kind}_{index}"
    return dict(names).get(usual, usual)


def _dense_layers(
    x: jax.Array,
    hidden: tuple[int, ...],
    rates: tuple[float, ...],
    train: bool,
    batch_offset: jax.Array | int,
    names: Names,
) -> jax.Array:
    """Adds hidden dense layers with dropout and the output layer: `[B,D] -> [B,10]`."""

    def dense(width: int, index: int) -> nn.Dense:
        kernel_init = nn.initializers.glorot_uniform()
        name = _name(names, "Dense", index)
        return nn.Dense(width, kernel_init=kernel_init, name=name)

    for index, (width, rate) in enumerate(zip(hidden, rates, strict=True)):
        x = nn.relu(dense(width, index)(x))
        x = Dropout(rate)(x, train, batch_offset)
    return dense(CLASSES, len(hidden))(x)


def _rates(dropout: tuple[float, ...], layers: int) -> tuple[float, ...]:
    """Gives every layer its dropout rate, where one may stand for all."""
    return dropout * layers if len(dropout) == 1 else dropout


class MLP(nn.Module):
    """Dense layers with ReLU.

    >>> model = MLP(hidden=(32,))
    >>> count_params(model)
    25450
    """

    hidden: tuple[int, ...]
    dropout: tuple[float, ...] = (0.0,)
    names: Names = ()

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, batch_offset: jax.Array | int = 0
    ) -> jax.Array:
        """Returns the logits `[B,10]`.

        Args:
            images: `[B,28,28]`.
            train: whether values are dropped.
            batch_offset: index of the first image in the whole batch, of which a device
                may have a share: dropout's masks go by it.
        """
        x = images.reshape(len(images), -1)
        rates = _rates(self.dropout, len(self.hidden))
        return _dense_layers(x, self.hidden, rates, train, batch_offset, self.names)


class LSTM(nn.Module):
    """LSTM layers over the rows of the image, the last one's last state, dense layers.

    >>> count_params(LSTM(units=(128,), activation="tanh", hidden=()))
    81674
    """

    units: tuple[int, ...]
    activation: str
    hidden: tuple[int, ...]
    dropout: tuple[float, ...] = (0.0,)
    impl: str = "plain"
    names: Names = ()

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, batch_offset: jax.Array | int = 0
    ) -> jax.Array:
        """Returns the logits `[B,10]`; arguments as of `MLP`."""
        x, last = images, len(self.units) - 1
        rates = _rates(self.dropout, len(self.units) + len(self.hidden))
        for layer, units in enumerate(self.units):
            x = LSTMLayer(
                units,
                activation=self.activation,
                return_sequences=layer < last,
                impl=self.impl,
                name=_name(self.names, "LSTMLayer", layer),
            )(x)
            x = Dropout(rates[layer])(x, train, batch_offset)
        return _dense_layers(
            x, self.hidden, rates[len(self.units) :], train, batch_offset, self.names
        )


class CNN(nn.Module):
    """Convolution stages, then dense layers.

    >>> stages = ConvStage(32, pool=2), ConvStage(64, pool=2), ConvStage(64)
    >>> count_params(CNN(stages, hidden=(64,)))
    93322
    """

    stages: tuple[ConvStage, ...]
    hidden: tuple[int, ...]
    dropout: tuple[float, ...] = (0.0,)
    impl: str = "plain"
    names: Names = ()

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, batch_offset: jax.Array | int = 0
    ) -> jax.Array:
        """Returns the logits `[B,10]`; arguments as of `MLP`."""
        x = images[..., None]
        for index, stage in enumerate(self.stages):
            name = _name(self.names, "Conv", index)
            x = Conv(stage, self.impl, name=name)(x)
        rates = _rates(self.dropout, len(self.hidden))
        x = x.reshape(len(images), -1)
        return _dense_layers(x, self.hidden, rates, train, batch_offset, self.names)


def resolve_impl(impl: str) -> str:
    """Decides which form of the layers runs: fast on CPUs, plain elsewhere."""
    if impl != "auto":
        return impl
    return "fast" if jax.default_backend() == "cpu" else "plain"


def usual_names(config: TrainConfig) -> list[str]:
    """Returns the names that a config's layers have unless they are given others."""
    counts = {
        "Conv": len(config.conv) if config.model == "cnn" else 0,
        "LSTMLayer": len(config.lstm_units) if config.model == "lstm" else 0,
        "Dense": len(config.hidden) + 1,
    }
    return [f"{kind}_{n}" for kind, count in counts.items() for n in range(count)]


def layer_names(config: TrainConfig) -> list[str]:
    """Returns the names of a config's layers in order.

    Raises:
        InputError: `layer_names` renames a layer that is not there, or one twice, or
            `freeze` names one that is not there; or two would have one name, dropouts
            among them.
    """
    usual = usual_names(config)
    own = dict(pair.split(":") for pair in config.layer_names)
    names = [own.get(name, name) for name in usual]
    for flag, given, known in (
        ("layer_names", own, usual),
        ("freeze", config.freeze, names),
    ):
        for name in given:
            if name not in known:
                raise InputError(
                    f"--{flag}: this network has no layer {name}; its layers are "
                    f"{', '.join(known)}"
                )
    if len(own) < len(config.layer_names):
        raise InputError(
            f"--layer_names={','.join(config.layer_names)} renames a layer twice; give "
            "it one name"
        )
    for name in own.values():
        if re.fullmatch(r"Dropout_\d+", name):  # Flax names those by itself
            raise InputError(
                f"--layer_names: {name} is what a dropout between the layers is "
                "called; give another name"
            )
    if len(set(names)) < len(names):
        raise InputError(
            f"--layer_names={','.join(config.layer_names)} gives two layers one name "
            f"({', '.join(names)}); use each once"
        )
    return names


def create_model(config: TrainConfig) -> nn.Module:
    """Returns the network that a config describes; errors as `layer_names`."""
    hidden, dropout = config.hidden, config.dropout
    names = tuple(zip(usual_names(config), layer_names(config), strict=True))
    if config.model == "mlp":
        return MLP(hidden, dropout, names)
    impl = resolve_impl(config.impl)
    if config.model == "lstm":
        units, activation = config.lstm_units, config.activation
        return LSTM(units, activation, hidden, dropout, impl, names)
    stages = tuple(map(parse_conv_stage, config.conv))
    return CNN(stages, hidden, dropout, impl, names)


def init_params(model: nn.Module, key: jax.Array) -> Any:
    """Returns the initial parameters of a network."""
    if hasattr(model, "impl"):  # the same parameters, from layers quicker to trace
        model = model.clone(impl="plain")
    return model.init(key, jnp.zeros((1, *IMAGE_SHAPE), jnp.float32))["params"]


@functools.cache
def count_params(model: nn.Module) -> int:
    """Counts a network's parameters without computing any."""
    shapes = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))
