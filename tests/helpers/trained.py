"""Trained runs without training: networks with random parameters."""

import dataclasses
from typing import Any

import jax
import numpy as np

from helpers.records import make_record
from mnist_jax.config import TrainConfig
from mnist_jax.data.pixels import Preprocess
from mnist_jax.data.types import MNIST, Shapes
from mnist_jax.models.custom import network_sha256
from mnist_jax.models.networks import create_model, variable_shapes
from mnist_jax.training.checkpoints import params_sha256
from mnist_jax.training.run_dir import TrainedRun

# Every option of the built-in networks, once at least.
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": dict(model="mlp", hidden=(16, 8), pixels="standardized", crop=4),
    "linear": dict(model="mlp", hidden=(), pixels="raw"),
    "lstm": dict(model="lstm", lstm_units=(8,), hidden=(8,), pixels="l2"),
    "stacked": dict(
        model="lstm", lstm_units=(8, 4), hidden=(), activation="relu", crop=3
    ),
    "cnn": dict(
        model="cnn",
        conv=("4:k5:same:s2:tanh:bn", "6:linear:pool2", "8:k2:same:relu:pool3:bn"),
        hidden=(8,),
        crop=2,
    ),
    "strided": dict(model="cnn", conv=("4:s2", "6:k4:same:s2"), hidden=()),
}


def _random_array(path: Any, leaf: Any, rng: np.random.Generator) -> np.ndarray:
    """Returns values with which outputs depend on the image and do not saturate."""
    if jax.tree_util.keystr(path).endswith("['var']"):
        values = rng.uniform(0.5, 2.0, leaf.shape)
    elif leaf.ndim == 1:  # bias, mean or scale
        values = rng.normal(0.2, 0.2, leaf.shape)
    else:
        inputs = leaf.size // leaf.shape[-1]
        values = rng.normal(0, 3 / np.sqrt(inputs), leaf.shape)
    return values.astype(leaf.dtype)


def make_run(shapes: Shapes = MNIST, **fields: Any) -> TrainedRun:
    """Returns a run with random parameters.

    Args:
        shapes: of its images and classes.
        **fields: of its config.
    """
    config = TrainConfig(**fields).for_dataset("mnist")
    model, rng = create_model(config, shapes), np.random.default_rng(0)
    variables = jax.tree.map_with_path(
        lambda path, leaf: _random_array(path, leaf, rng),
        variable_shapes(model, shapes.image),
    )
    statistics = (0.25, 0.5) if config.pixels == "standardized" else (None, None)
    record = dataclasses.replace(
        make_record(**fields),
        params_sha256=params_sha256(variables),
        source_sha256=network_sha256(config),
        image_shape=shapes.image,
        classes=shapes.classes,
        class_names=tuple(map(str, range(shapes.classes))),
        pixel_mean=statistics[0],
        pixel_std=statistics[1],
    )
    preprocess = Preprocess(config.pixels, *statistics)
    return TrainedRun(config, record, variables, preprocess)
