"""Tests of a network and of a step function, as in docs/testing.md."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

from mnist_jax import Metrics, TrainState, init_state
from mnist_jax.testing import CHECKS, check_model, check_step, make_batch

pytest_plugins = ["mnist_jax.pytest_plugin"]


class MyNetwork(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):  # [B,28,28] float32 -> logits [B,10]
        x = nn.relu(nn.Dense(64)(images.reshape(len(images), -1)))
        return nn.Dense(10)(nn.Dropout(0.1, deterministic=not train)(x))


def smoothed_step(state, images, labels, mask, key, *, model, tx):
    """A training step with smoothed labels."""

    def loss_fn(params):
        rngs = {"dropout": key}
        logits = model.apply({"params": params}, images, train=True, rngs=rngs)
        targets = optax.smooth_labels(jax.nn.one_hot(labels, 10), 0.1)
        loss_sum = jnp.sum(optax.softmax_cross_entropy(logits, targets) * mask)
        correct = jnp.sum((logits.argmax(axis=-1) == labels) * mask)
        return loss_sum / mask.sum(), Metrics(loss_sum, correct, mask.sum())

    grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(params, state.stats, opt_state), metrics


@pytest.mark.parametrize("check", CHECKS)
def test_network(check):
    check_model(MyNetwork, checks=[check])


def test_step():
    model, tx = MyNetwork(), optax.adam(1e-3)
    state = init_state(model, tx, jax.random.key(0), (28, 28))
    check_step(partial(smoothed_step, model=model, tx=tx), state, make_batch(16))


def test_a_trained_run_predicts(small_run, digits):
    probabilities = small_run.predict(digits.test.images)
    assert probabilities.shape == (360, 10)
