"""Training steps: learning, hand-computed metrics, optimizers and schedules."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnist_jax.config import ConvStage, TrainConfig
from mnist_jax.data.types import IMAGE_SHAPE
from mnist_jax.models.networks import CNN
from mnist_jax.testing import assert_trees_close, make_batch
from mnist_jax.training.optimizers import (
    create_optimizer,
    create_schedule,
    scale_by_adam,
)
from mnist_jax.training.steps import batch_metrics, init_state, train_step


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


def test_microbatches_average_the_running_statistics():
    """As plain Flax on each, weighted by its images that are not padding."""
    model, tx = CNN((ConvStage(4, pool=2, bn=True),), (), 10), optax.sgd(0.1)
    state = init_state(model, tx, jax.random.key(0), IMAGE_SHAPE)
    images, labels, _ = make_batch(12)
    mask = jnp.float32(jnp.arange(12) < 10)

    def loss_fn(params):
        loss, means = 0.0, jax.tree.map(jnp.zeros_like, state.stats)
        for i in (0, 4, 8):
            logits, stats = model.apply(
                {"params": params, **state.stats},
                images[i : i + 4],
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits, labels[i : i + 4]
            )
            loss += jnp.sum(losses * mask[i : i + 4]) / 10
            weight = mask[i : i + 4].sum() / 10
            means = jax.tree.map(lambda m, s, w=weight: m + w * s, means, stats)
        return loss, means

    step = jax.jit(partial(train_step, model=model, tx=tx, microbatches=3))
    got, _ = step(state, images, labels, mask, jax.random.key(0))
    grads, stats = jax.grad(loss_fn, has_aux=True)(state.params)
    params = jax.tree.map(lambda leaf, grad: leaf - 0.1 * grad, state.params, grads)
    assert_trees_close((got.params, got.stats), (params, stats), 1e-4)


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
            for moment, wanted in zip(state[1:], plain_state[1:], strict=True):
                np.testing.assert_allclose(moment, wanted, rtol=1e-10)


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
