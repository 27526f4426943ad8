"""The published systems' networks in Keras, as their tutorials build them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from benchmarks.published.systems import read_preset
from mnist_jax.config import TrainConfig


def _mlp(k: Any, *widths: int) -> list[Any]:
    hidden = [k.Dense(width, activation="relu") for width in widths]
    return [k.Flatten(), *hidden, k.Dense(10)]


def _conv(k: Any, filters: int, **options: Any) -> Any:
    return k.Conv2D(filters, 3, activation="relu", **options)


# The layers of each system; `k` is keras.layers. av_lstm is without its dropout, since
# frameworks do not draw the same masks.
SYSTEMS: dict[str, Callable[[Any], list[Any]]] = {
    "av_dnn": lambda k: _mlp(k, 128, 128),
    "av_lstm": lambda k: [
        k.LSTM(128, activation="relu", return_sequences=True),
        *(k.LSTM(128, activation="relu"), *_mlp(k, 32)),
    ],
    "av_cnn": lambda k: [k.Conv2D(32, 3), k.MaxPooling2D(2), *_mlp(k, 100)],
    "ml10_mlp_raw": lambda k: _mlp(k, 32),
    "ml10_mlp": lambda k: _mlp(k, 32),
    "ml10_cnn": lambda k: [
        *(_conv(k, 32), k.MaxPooling2D(2), _conv(k, 64), k.MaxPooling2D(2)),
        *(_conv(k, 64), *_mlp(k, 64)),
    ],
    "fj_fc": lambda k: _mlp(k, 500, 100),
    "fj_cnn_pool": lambda k: [
        *(_conv(k, 16, padding="same"), k.MaxPooling2D(2)),
        *(_conv(k, 32, padding="same"), k.MaxPooling2D(2), *_mlp(k)),
    ],
    "fj_cnn_stride": lambda k: [
        _conv(k, 16, padding="same", strides=2),
        *(_conv(k, 32, padding="same", strides=2), *_mlp(k)),
    ],
    "cv_cnn": lambda k: [k.Conv2D(8, 3), k.MaxPooling2D(2), *_mlp(k)],
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
    return read_preset(name, impl=impl, dropout=(0.0,))[0]


def build_keras(keras: Any, name: str) -> Any:
    """Returns the tutorial's network with its initial weights, compiled."""
    keras.utils.set_random_seed(1)
    image = (28, 28, 1) if read_system(name).model == "cnn" else (28, 28)
    layers = keras.layers
    model = keras.Sequential([layers.Input(image), *SYSTEMS[name](layers)])
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
