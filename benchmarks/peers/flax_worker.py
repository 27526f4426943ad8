"""Times an unoptimized Flax program: the baseline worker of `benchmarks.peers`.

python -m benchmarks.peers.flax_worker --model=cnn --batch_size=128 --arrays=FOLDER

It uses Flax's layers, a jitted step and a Python loop over NumPy batches, on JAX's
single default CPU device, which uses all cores. Parameters are initialized by Flax's
defaults, except the LSTM's, which are initialized as in Keras (and in our network), so
that accuracies are comparable.
"""

import dataclasses
import itertools
from functools import partial
from typing import Any

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

TEST_CHUNK = 1000


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


def keras_values(cell: Any, key: jax.Array) -> Any:
    """Returns the initial parameters that Keras would give an LSTM cell.

    Keras initializes one kernel for all four gates, Flax one per gate: Flax's recurrent
    weights are twice as large, its input weights differ too, its forget bias is 0.

    Args:
        cell: the cell's parameters, of which only the shapes are used.
        key: random key.
    """
    inputs, units = cell["ii"]["kernel"].shape
    keys = jax.random.split(key)
    kernel = nn.initializers.glorot_uniform()(keys[0], (inputs, 4 * units))
    recurrent = nn.initializers.orthogonal()(keys[1], (units, 4 * units))
    gates = zip("ifgo", *(jnp.split(x, 4, 1) for x in (kernel, recurrent)), strict=True)
    params = {}
    for gate, input_kernel, recurrent_kernel in gates:
        params[f"i{gate}"] = {"kernel": input_kernel}
        bias = jnp.full(units, float(gate == "f"))
        params[f"h{gate}"] = {"kernel": recurrent_kernel, "bias": bias}
    return params


def init_params(model: nn.Module, key: jax.Array, images: np.ndarray) -> Any:
    """Returns a network's initial parameters, with LSTMs initialized as in Keras."""
    params = model.init(key, images[:1])["params"]
    for index, name in enumerate(params):
        if "LSTMCell" in name:
            cell_key = jax.random.fold_in(key, index)
            params[name] = keras_values(params[name], cell_key)
    return params


@jax.jit
def train_step(
    state: TrainState, images: jax.Array, labels: jax.Array
) -> tuple[TrainState, jax.Array]:
    """Trains on one batch; returns the new state and the mean loss."""

    def loss_fn(params: Any) -> jax.Array:
        logits = state.apply_fn({"params": params}, images)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    loss, grads = jax.value_and_grad(loss_fn)(state.params)
    return state.apply_gradients(grads=grads), loss


@jax.jit
def count_correct(state: TrainState, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the number of correctly classified images."""
    logits = state.apply_fn({"params": state.params}, images)
    return jnp.sum(jnp.argmax(logits, axis=-1) == labels)


def measure(job: Job, arrays: Arrays) -> Measurement:
    """Trains and times a network; epoch times include shuffling."""
    if job.model not in _MODELS:
        return measure_example(job, arrays)
    images, labels = preprocess(arrays.train_images), arrays.train_labels
    model, tx = _MODELS[job.model](), optax.adam(LEARNING_RATE)
    params = init_params(model, jax.random.key(job.seed), images)
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    rng = np.random.default_rng(job.seed)

    def train_epoch() -> None:
        nonlocal state
        order = rng.permutation(len(labels))
        for start in range(0, len(labels), job.batch_size):
            batch = order[start : start + job.batch_size]
            state, loss = train_step(state, images[batch], labels[batch])
        jax.block_until_ready((state, loss))

    seconds = time_epochs(train_epoch, job)
    splits = range(TEST_CHUNK, len(arrays.test_labels), TEST_CHUNK)
    test = preprocess(arrays.test_images), arrays.test_labels
    chunks = zip(*(np.split(array, splits) for array in test), strict=True)
    correct = sum(int(count_correct(state, *chunk)) for chunk in chunks)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    settings = "nn.Conv, nn.max_pool, nn.RNN(OptimizedLSTMCell), Python loop"
    return Measurement(seconds, correct / len(arrays.test_labels), parameters, settings)


def measure_example(job: Job, arrays: Arrays) -> Measurement:
    """Trains and times a network of `examples/` with this project's plain step."""
    images, labels = preprocess(arrays.train_images), arrays.train_labels
    config = dataclasses.replace(peer_config(job), impl="plain")
    model, tx = create_model(config, MNIST), optax.adam(LEARNING_RATE)
    init_key, run_key = jax.random.split(jax.random.key(job.seed))
    state = steps.init_state(model, tx, init_key, images.shape[1:])
    rng, numbers = np.random.default_rng(job.seed), itertools.count()

    @jax.jit
    def step(state: Any, images: Any, labels: Any, mask: Any, number: Any) -> Any:
        key = jax.random.fold_in(run_key, number)
        return steps.train_step(state, images, labels, mask, key, model=model, tx=tx)

    def train_epoch() -> None:
        nonlocal state
        order = rng.permutation(len(labels))
        for start in range(0, len(labels), job.batch_size):
            batch = order[start : start + job.batch_size]
            mask = np.ones(len(batch), np.float32)
            state, _ = step(state, images[batch], labels[batch], mask, next(numbers))
        jax.block_until_ready(state)

    seconds = time_epochs(train_epoch, job)
    evaluate = jax.jit(partial(steps.eval_step, model=model))
    chunks = np.split(
        np.arange(len(arrays.test_labels)), len(arrays.test_labels) // 200
    )
    correct = sum(
        evaluate(
            state.params,
            preprocess(arrays.test_images[chunk]),
            arrays.test_labels[chunk],
            np.ones(len(chunk), np.float32),
        ).correct
        for chunk in chunks
    )
    accuracy = float(correct) / len(arrays.test_labels)
    parameters = count_params(model, images.shape[1:])
    return Measurement(seconds, accuracy, parameters, "a Python loop over jitted steps")


if __name__ == "__main__":
    run_worker(measure)
