"""Training steps: learning, hand-computed metrics, optimizers and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnist_jax.config import TrainConfig
from mnist_jax.testing import assert_trees_close
from mnist_jax.training.optimizers import (
    create_optimizer,
    create_schedule,
    scale_by_adam,
)
from mnist_jax.training.steps import batch_metrics


def test_hand_made_logits_give_hand_computed_metrics():
    logits = np.full((4, 10), -1e9, np.float32)
    logits[0, 3] = 0.0  # certain and right: loss 0
    logits[1, [1, 2]] = 0.0  # a tie, argmax is the first: loss log 2, right
    logits[2, [1, 2]] = 0.0  # a tie, the label is the second: loss log 2, wrong
    logits[3, 5] = 0.0  # padding
    labels = jnp.array([3, 1, 2, 0])
    mask = jnp.array([1.0, 1.0, 1.0, 0.0])
    loss_sum, metrics = batch_metrics(jnp.asarray(logits), labels, mask)
    np.testing.assert_allclose(loss_sum, 2 * np.log(2), rtol=1e-6)
    assert float(metrics.correct) == 2 and float(metrics.images) == 3


def test_adam_equals_optax():
    """With gradients from far below epsilon to far above it, and zero."""
    rng = np.random.default_rng(0)
    sizes = np.append(0.0, np.logspace(-12, 3, 16))
    with jax.enable_x64(True):
        ours, plain = scale_by_adam(), optax.scale_by_adam()
        state, plain_state = ours.init(sizes), plain.init(sizes)
        for _ in range(50):
            grads = jnp.asarray(rng.normal(size=len(sizes)) * sizes)
            got, state = ours.update(grads, state)
            want, plain_state = plain.update(grads, plain_state)
            np.testing.assert_allclose(got, want, rtol=1e-10)
            for ours_moment, moment in zip(state[1:], plain_state[1:], strict=True):
                np.testing.assert_allclose(ours_moment, moment, rtol=1e-10)


def test_adam_corrects_the_bias_of_bfloat16_gradients_in_float32():
    gradient = jnp.ones(1, jnp.bfloat16)
    tx = scale_by_adam()
    state = tx.init(gradient)
    for _ in range(20):  # a constant gradient: each update is 1
        update, state = tx.update(gradient, state)
        np.testing.assert_allclose(update, 1, rtol=0.03)
    assert state.mu.dtype == state.nu.dtype == gradient.dtype


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_schedules_rise_to_the_peak_and_fall(schedule):
    config = TrainConfig(schedule=schedule, warmup_fraction=0.25)
    assert np.isfinite([create_schedule(config, 1)(step) for step in (0, 1)]).all()
    rates = [float(create_schedule(config, 100)(step)) for step in range(101)]
    assert np.argmax(rates) == 25
    np.testing.assert_allclose(max(rates), 1, rtol=1e-5)
    assert rates[0] <= 1 / 25 + 1e-6 and rates[-1] < 2e-3


SGD = dict(optimizer="sgd", momentum=0.9, clip_norm=0.5)
BETAS = dict(beta1=0.8, beta2=0.95)
NUMBERS = optax.contrib.MuonDimensionNumbers


@pytest.mark.parametrize(
    "options, want",
    [
        (SGD, [optax.clip_by_global_norm(0.5), optax.sgd(0.1, 0.9)]),
        (
            SGD | dict(nesterov=True),
            [optax.clip_by_global_norm(0.5), optax.sgd(0.1, 0.9, nesterov=True)],
        ),
        (dict(optimizer="adam", **BETAS), [optax.adam(0.1, 0.8, 0.95)]),
        (
            dict(optimizer="adamw", weight_decay=0.02, **BETAS),
            [optax.adamw(0.1, 0.8, 0.95, weight_decay=0.02)],
        ),
        (
            dict(optimizer="muon", **BETAS),
            [
                optax.contrib.muon(
                    0.1,
                    muon_weight_dimension_numbers={
                        "kernel": NUMBERS((0, 1, 2), 3),
                        "bias": None,
                    },
                    consistent_rms=0.2,
                    adam_b1=0.8,
                    adam_b2=0.95,
                )
            ],
        ),
    ],
    ids=lambda value: value["optimizer"] if isinstance(value, dict) else "",
)
def test_optimizers_are_those_of_optax(options, want):
    config = TrainConfig(schedule="constant", learning_rate=0.1, **options)
    rng, params = np.random.default_rng(0), {}
    for name, shape in (("kernel", (3, 3, 2, 4)), ("bias", (4,))):
        params[name] = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    ours, other = create_optimizer(config, 3), optax.chain(*want)
    state, wanted = ours.init(params), other.init(params)
    for _ in range(3):
        grads = jax.tree.map(lambda leaf: leaf * rng.standard_normal(), params)
        got, state = ours.update(grads, state, params)
        updates, wanted = other.update(grads, wanted, params)
        assert_trees_close(got, updates, 1e-4)
