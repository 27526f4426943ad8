"""Times an unoptimized Flax program: the baseline worker of `benchmarks.peers`.

python -m benchmarks.peers.flax_worker --model=cnn --batch_size=128 --arrays=FOLDER

It uses Flax's layers and defaults, a jitted step and a Python loop over NumPy batches,
on JAX's single default CPU device, which uses all cores.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

from mnist_jax.data.types import MNIST
from mnist_jax.models.networks import count_params, create_model
from mnist_jax.training import steps

from .worker import (
    LEARNING_RATE,
    Arrays,
    Job,
    Measurement,
    peer_config,
    preprocess,
    run_worker,
    time_epochs,
)

TEST_CHUNK = 500


class MLP(nn.Module):
    """784-128-128-10."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(128)(x))
        x = nn.relu(nn.Dense(128)(x))
        return nn.Dense(10)(x)


class CNN(nn.Module):
    """Three convolutions, the first two followed by max pooling."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x[..., None]
        x = nn.relu(nn.Conv(32, (3, 3), padding="VALID")(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(64, (3, 3), padding="VALID")(x))
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(64, (3, 3), padding="VALID")(x))
        x = x.reshape((x.shape[0], -1))
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(10)(x)


class LSTM(nn.Module):
    """Two LSTM layers over the image rows."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        states: Any = nn.RNN(nn.OptimizedLSTMCell(128))(x)
        states = nn.RNN(nn.OptimizedLSTMCell(128))(states)
        x = states[:, -1]
        x = nn.relu(nn.Dense(32)(x))
        return nn.Dense(10)(x)


_MODELS = {"mlp": MLP, "lstm": LSTM, "cnn": CNN}


class Program(NamedTuple):
    """What is trained: a jitted step, and a jitted count of correct predictions."""

    state: Any
    step: Callable[..., Any]  # (state, images, labels, number) -> state
    correct: Callable[..., jax.Array]  # (state, images, labels) -> their number
    parameters: int


def plain_program(job: Job, images: np.ndarray) -> Program:
    """Returns one of the three networks, as Flax's users write it."""
    model, tx = _MODELS[job.model](), optax.adam(LEARNING_RATE)
    params = model.init(jax.random.key(job.seed), images[:1])["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)

    @jax.jit
    def step(state: Any, images: Any, labels: Any, number: Any) -> Any:
        def loss_fn(params: Any) -> jax.Array:
            logits = model.apply({"params": params}, images)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean()

        return state.apply_gradients(grads=jax.grad(loss_fn)(state.params))

    @jax.jit
    def count(state: Any, images: Any, labels: Any) -> jax.Array:
        logits: Any = model.apply({"params": state.params}, images)
        return jnp.sum(jnp.argmax(logits, axis=-1) == labels)

    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    return Program(state, step, count, parameters)


def example_program(job: Job, images: np.ndarray) -> Program:
    """Returns a network of `examples/`, with this project's plain step."""
    config = dataclasses.replace(peer_config(job), impl="plain")
    model, tx = create_model(config, MNIST), optax.adam(LEARNING_RATE)
    init_key, run_key = jax.random.split(jax.random.key(job.seed))
    state = steps.init_state(model, tx, init_key, images.shape[1:])

    @jax.jit
    def step(state: Any, images: Any, labels: Any, number: Any) -> Any:
        key, mask = jax.random.fold_in(run_key, number), jnp.ones(len(images))
        return steps.train_step(state, images, labels, mask, key, model=model, tx=tx)[0]

    @jax.jit
    def count(state: Any, images: Any, labels: Any) -> jax.Array:
        mask = jnp.ones(len(images))
        metrics = steps.eval_step(state.variables, images, labels, mask, model=model)
        return metrics.correct

    return Program(state, step, count, count_params(model, images.shape[1:]))


def measure(job: Job, arrays: Arrays) -> Measurement:
    """Trains and times a network; epoch times include shuffling."""
    images, labels = preprocess(arrays.train_images), arrays.train_labels
    make = plain_program if job.model in _MODELS else example_program
    state, step, count, parameters = make(job, images)
    rng, numbers = np.random.default_rng(job.seed), itertools.count()

    def train_epoch() -> None:
        nonlocal state
        order = rng.permutation(len(labels))
        for start in range(0, len(labels), job.batch_size):
            batch = order[start : start + job.batch_size]
            state = step(state, images[batch], labels[batch], next(numbers))
        jax.block_until_ready(state)

    seconds = time_epochs(train_epoch, job)
    test, truth = preprocess(arrays.test_images), arrays.test_labels
    correct = 0
    for start in range(0, len(truth), TEST_CHUNK):
        chunk = slice(start, start + TEST_CHUNK)
        correct += int(count(state, test[chunk], truth[chunk]))
    accuracy = correct / len(truth)
    return Measurement(seconds, accuracy, parameters, "a Python loop over jitted steps")


if __name__ == "__main__":
    run_worker(measure)
