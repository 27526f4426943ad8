"""Times a loop over plain Flax: the baseline worker of `benchmarks.peers`.

python -m benchmarks.peers.flax_worker --model=cnn --batch_size=128 --arrays=FOLDER

It uses Flax's layers and defaults, a jitted step and a Python loop over NumPy batches,
on JAX's single default CPU device, which uses all cores.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from mnist_jax.config import MODELS, TrainConfig, parse_conv_stage
from mnist_jax.data.pixels import Preprocess
from mnist_jax.data.types import MNIST, Dataset
from mnist_jax.models.networks import count_params, create_model
from mnist_jax.training import steps
from mnist_jax.training.epochs import predict_images

from .worker import (
    LEARNING_RATE,
    Job,
    Measurement,
    preprocess,
    run_worker,
    time_epochs,
)


class Network(nn.Module):
    """One of the three networks, as Flax's users write it."""

    config: TrainConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits `[B,10]` of images `[B,28,28]`."""
        if self.config.model == "cnn":
            x = x[..., None]
            for stage in map(parse_conv_stage, self.config.conv):
                x = nn.relu(nn.Conv(stage.filters, (3, 3), padding="VALID")(x))
                if stage.pool > 1:
                    window = stage.pool, stage.pool
                    x = nn.max_pool(x, window, strides=window)
        if self.config.model == "lstm":
            for units in self.config.lstm_units:
                states: Any = nn.RNN(nn.OptimizedLSTMCell(units))(x)
                x = states
            x = x[:, -1]
        x = x.reshape((len(x), -1))
        for width in self.config.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def measure(job: Job, dataset: Dataset) -> Measurement:
    """Trains and times a network; epoch times include shuffling."""
    model: nn.Module = Network(job.config)
    if job.model not in MODELS:
        model = create_model(dataclasses.replace(job.config, impl="plain"), MNIST)
    tx = optax.adam(LEARNING_RATE)
    init_key, run_key = jax.random.split(jax.random.key(job.seed))
    state = steps.init_state(model, tx, init_key, MNIST.image)

    @jax.jit
    def train_step(
        state: steps.TrainState, images: jax.Array, labels: jax.Array, number: int
    ) -> steps.TrainState:
        key, mask = jax.random.fold_in(run_key, number), jnp.ones(len(images))
        return steps.train_step(state, images, labels, mask, key, model=model, tx=tx)[0]

    images, labels = preprocess(dataset.train.images), dataset.train.labels
    rng, numbers = np.random.default_rng(job.seed), itertools.count()

    def train_epoch() -> None:
        nonlocal state
        order = rng.permutation(len(labels))
        for start in range(0, len(labels), job.batch_size):
            batch = order[start : start + job.batch_size]
            state = train_step(state, images[batch], labels[batch], next(numbers))
        jax.block_until_ready(state)

    seconds = time_epochs(train_epoch, job)
    predicted = predict_images(
        model, Preprocess("scaled"), state.variables, dataset.test.images
    ).argmax(axis=1)
    accuracy = float((predicted == dataset.test.labels).mean())
    return Measurement(seconds, accuracy, count_params(model, MNIST.image))


if __name__ == "__main__":
    run_worker(measure)
