"""Times a loop over plain Flax: the baseline worker of `benchmarks.peers`.

It uses Flax's layers, a jitted step and a Python loop over NumPy batches, on JAX's
single default CPU device, which uses all cores.
"""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from mnist_jax.data.pixels import Preprocess
from mnist_jax.data.types import MNIST, Dataset
from mnist_jax.models.networks import count_params, create_model
from mnist_jax.training import steps
from mnist_jax.training.epochs import predict_images

from .worker import LEARNING_RATE, Job, Measurement, preprocess, run_worker, time_epochs


class LSTM(nn.Module):
    """The LSTM, as Flax's users write it."""

    units: tuple[int, ...]
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logits `[B,10]` of images `[B,28,28]`."""
        for units in self.units:
            states: Any = nn.RNN(nn.OptimizedLSTMCell(units))(x)
            x = states
        x = x[:, -1]
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(10)(x)


def measure(job: Job, dataset: Dataset) -> Measurement:
    """Trains and times a network; epoch times include shuffling."""
    config = dataclasses.replace(job.config, impl="plain")
    model: nn.Module = (
        LSTM(config.lstm_units, config.hidden)
        if job.model == "lstm"
        else create_model(config, MNIST)
    )
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
