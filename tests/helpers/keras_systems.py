"""The published systems' networks in Keras, as their tutorials build them."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from benchmarks.published.systems import read_preset
from mnist_jax.config import TrainConfig

# Parameter count and layers of each system; `k` is keras.layers. The dropout of av_lstm
# has rate 0 here, since frameworks do not draw the same masks.
SYSTEMS: dict[str, tuple[int, Callable[[Any], list[Any]]]] = {
    "av_dnn": (
        118_282,
        lambda k: [
            k.Flatten(),
            k.Dense(128, activation="relu"),
            k.Dense(128, activation="relu"),
            k.Dense(10),
        ],
    ),
    "av_lstm": (
        216_426,
        lambda k: [
            k.LSTM(128, activation="relu", return_sequences=True),
            k.Dropout(0.0),
            k.LSTM(128, activation="relu"),
            k.Dropout(0.0),
            k.Dense(32, activation="relu"),
            k.Dropout(0.0),
            k.Dense(10),
        ],
    ),
    "av_cnn": (
        542_230,
        lambda k: [
            k.Conv2D(32, (3, 3)),
            k.MaxPooling2D((2, 2)),
            k.Flatten(),
            k.Dense(100, activation="relu"),
            k.Dense(10),
        ],
    ),
    "ml10_mlp_raw": (
        25_450,
        lambda k: [k.Flatten(), k.Dense(32, activation="relu"), k.Dense(10)],
    ),
    "ml10_mlp": (
        25_450,
        lambda k: [k.Flatten(), k.Dense(32, activation="relu"), k.Dense(10)],
    ),
    "ml10_cnn": (
        93_322,
        lambda k: [
            k.Conv2D(32, (3, 3), activation="relu"),
            k.MaxPooling2D((2, 2)),
            k.Conv2D(64, (3, 3), activation="relu"),
            k.MaxPooling2D((2, 2)),
            k.Conv2D(64, (3, 3), activation="relu"),
            k.Flatten(),
            k.Dense(64, activation="relu"),
            k.Dense(10),
        ],
    ),
    "fj_fc": (
        443_610,
        lambda k: [
            k.Flatten(),
            k.Dense(500, activation="relu"),
            k.Dense(100, activation="relu"),
            k.Dense(10),
        ],
    ),
    "fj_cnn_pool": (
        20_490,
        lambda k: [
            k.Conv2D(16, (3, 3), activation="relu", padding="same"),
            k.MaxPooling2D((2, 2)),
            k.Conv2D(32, (3, 3), activation="relu", padding="same"),
            k.MaxPooling2D((2, 2)),
            k.Flatten(),
            k.Dense(10),
        ],
    ),
    "fj_cnn_stride": (
        20_490,
        lambda k: [
            k.Conv2D(16, (3, 3), strides=2, activation="relu", padding="same"),
            k.Conv2D(32, (3, 3), strides=2, activation="relu", padding="same"),
            k.Flatten(),
            k.Dense(10),
        ],
    ),
    "cv_cnn": (
        13_610,
        lambda k: [
            k.Conv2D(8, (3, 3)),
            k.MaxPooling2D((2, 2)),
            k.Flatten(),
            k.Dense(10),
        ],
    ),
}
ONE_HOT = {"cv_cnn"}


@contextlib.contextmanager
def keras_rules(keras: Any, dtype: str = "float32") -> Iterator[None]:
    """Sets Keras's precision, and allows rank promotion for its biases.

    In float32 it compiles without most optimizations, in a third of the time; float64
    needs them, since XLA compiles its convolutions to naive loops.
    """
    keras.config.set_floatx(dtype)  # for losses and the optimizer's settings
    keras.config.set_dtype_policy(dtype)  # for layers
    jax.config.update("jax_disable_most_optimizations", dtype == "float32")
    try:
        with jax.enable_x64(dtype == "float64"), jax.numpy_rank_promotion("allow"):
            yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


def read_system(name: str, impl: str = "auto") -> TrainConfig:
    """Returns a preset without its dropout."""
    return read_preset(name, f"--impl={impl}", "--dropout=0")[0]


def build_keras(keras: Any, name: str, blank: bool = False) -> Any:
    """Returns the tutorial's network with its initial weights, compiled.

    Args:
        keras: the package.
        name: the name of the system.
        blank: whether to initialize the weights to zero, if they are replaced anyway.
    """
    keras.utils.set_random_seed(1)
    config = read_system(name)
    layers = keras.layers
    if blank:
        zeros = dict(kernel_initializer="zeros")
        layers = SimpleNamespace(
            Dense=partial(layers.Dense, **zeros),
            Conv2D=partial(layers.Conv2D, **zeros),
            LSTM=partial(layers.LSTM, recurrent_initializer="zeros", **zeros),
            Flatten=layers.Flatten,
            Dropout=layers.Dropout,
            MaxPooling2D=layers.MaxPooling2D,
        )
    image = (28, 28, 1) if config.model == "cnn" else (28, 28)
    model = keras.Sequential([keras.layers.Input(image), *SYSTEMS[name][1](layers)])
    optimizer: Any = keras.optimizers.Adam()  # with Keras's defaults
    if name == "fj_fc":
        optimizer = keras.optimizers.SGD(learning_rate=1e-3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if name in ONE_HOT:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    return model


def _pair_weights(model: Any) -> Iterator[tuple[str, str, Any]]:
    """Yields our layer name, our parameter name and the variable of each weight."""
    kinds = {"Conv2D": "Conv", "LSTM": "LSTMLayer", "Dense": "Dense"}
    counts = dict.fromkeys(kinds.values(), 0)
    for layer in model.layers:
        if layer.weights:
            kind = kinds[type(layer).__name__]
            for variable in layer.weights:
                yield f"{kind}_{counts[kind]}", variable.name, variable
            counts[kind] += 1


def params_from_keras(model: Any) -> dict[str, dict[str, np.ndarray]]:
    """Returns a Keras network's weights as our parameters."""
    params: dict[str, dict[str, np.ndarray]] = {}
    for layer, name, variable in _pair_weights(model):
        params.setdefault(layer, {})[name] = np.array(variable.value)
    return params


def params_to_keras(params: Any, model: Any) -> None:
    """Writes our parameters into a Keras network."""
    for layer, name, variable in _pair_weights(model):
        variable.assign(params[layer][name])


def with_channel(model: Any, images: np.ndarray) -> np.ndarray:
    """Gives images the channel axis that a Keras convolution needs."""
    return images.reshape(-1, *model.input_shape[1:])
