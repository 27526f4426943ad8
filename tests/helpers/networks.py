"""Gradients of whole networks, for comparisons of their implementations."""

from functools import partial

import jax
import numpy as np

from helpers.compilation import users_jit
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import MNIST, Shapes, Split
from mnist_jax.models.networks import create_model, init_model
from mnist_jax.testing.steps import preprocess
from mnist_jax.training.steps import Metrics, batch_gradients


def network_gradients(
    config: TrainConfig, split: Split, shapes: Shapes = MNIST, jit=users_jit
) -> tuple[dict, Metrics]:
    """Returns the gradients and metrics of a batch for the parameters of seed 0."""
    model = create_model(config, shapes)
    init = jax.jit(partial(init_model, model, image_shape=shapes.image))
    variables = init(jax.random.key(0))
    mask, key = np.ones(len(split.labels), np.float32), jax.random.key(1)
    step = jit(partial(batch_gradients, model=model))
    return step(variables, preprocess(split.images), split.labels, mask, key)
