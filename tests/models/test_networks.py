"""Parameter counts, shapes, dropout, and the LSTM compared with a loop."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compilation import users_jit

from mnist_jax.config import ConvStage, TrainConfig
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Dataset
from mnist_jax.models.layers import Dropout
from mnist_jax.models.networks import (
    CNN,
    LSTM,
    MLP,
    count_params,
    create_model,
    init_model,
)
from mnist_jax.testing import check_model
from mnist_jax.training.steps import batch_metrics

pytestmark = pytest.mark.slow

MODELS = ("mlp", "lstm", "cnn")
COUNTS = {"mlp": 118_282, "lstm": 81_674, "cnn": 93_322}


@pytest.mark.parametrize(
    "network",
    [
        MLP((16,), 10, dropout=(0.5,)),
        LSTM((8, 8), "tanh", (8,), 10, impl="cpu"),
        # By two algorithms, then with batch normalization.
        CNN((ConvStage(8, pool=2), ConvStage(32, pool=2)), (16,), 10, impl="cpu"),
        CNN((ConvStage(4, pool=2, bn=True),), (8,), 10, impl="cpu"),
    ],
    ids=["mlp", "lstm", "cnn", "bn"],
)
def test_networks_pass_every_check(network):
    check_model(network)


def quick_params(model, seed=0):
    """Returns a network's initial parameters, with a program that compiles quickly."""
    init = jax.jit(lambda key: init_model(model, key, IMAGE_SHAPE)["params"])
    return init(jax.random.key(seed))


@pytest.mark.parametrize("model", COUNTS)
def test_parameter_count_is_exact(model):
    network = create_model(TrainConfig(model=model), MNIST)
    assert count_params(network, IMAGE_SHAPE) == COUNTS[model]


@pytest.mark.parametrize(
    "model, impl", [("lstm", "cpu"), ("cnn", "cpu"), ("cnn", "gpu")]
)
def test_implementations_agree_on_real_digits(digits: Dataset, model, impl):
    # In the first 32 digits a ReLU input is 1e-7, whose sign depends on rounding.
    images = jnp.asarray(digits.train.images[32:64] / np.float32(255))
    labels = jnp.asarray(digits.train.labels[32:64])
    plain = create_model(TrainConfig(model=model, impl="plain"), MNIST)
    fast = create_model(TrainConfig(model=model, impl=impl), MNIST)
    params = quick_params(plain)
    blank = jnp.zeros((1, *IMAGE_SHAPE))
    # Not `init_model`, which uses the plain implementation for both.
    shapes = jax.eval_shape(fast.init, jax.random.key(0), blank)["params"]
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)

    def loss(model, params):
        logits = model.apply({"params": params}, images)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(32), labels])

    want, want_grads = jax.jit(jax.value_and_grad(partial(loss, plain)))(params)
    got, got_grads = users_jit(jax.value_and_grad(partial(loss, fast)))(params)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves(got_grads), jax.tree.leaves(want_grads), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max()))


def test_dropout_has_its_rate_and_keeps_the_mean():
    ones = jnp.ones((64, 1000))

    @jax.jit
    def drop(ones, key):
        return Dropout(0.2).apply({}, ones, True, 0, rngs={"dropout": key})

    dropped = np.asarray(drop(ones, jax.random.key(0)))
    values, counts = np.unique(dropped, return_counts=True)
    np.testing.assert_array_equal(values, np.float32([0, 1.25]))
    assert abs(counts[0] / ones.size - 0.2) < 0.01
    # Images have independent masks, which agree in 0.8 * 0.8 + 0.2 * 0.2 of values.
    agree = [np.mean(dropped[0] == other) for other in dropped[1:]]
    assert 0.6 < min(agree) and max(agree) < 0.76


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_auto_chooses_the_implementation_by_device(backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    model = create_model(TrainConfig(model="cnn"), MNIST)
    assert model.impl == {"cpu": "cpu", "gpu": "gpu", "tpu": "plain"}[backend]


@pytest.mark.parametrize(
    "model, impl", [*itertools.product(MODELS, ["plain", "cpu"]), ("cnn", "gpu")]
)
def test_bfloat16_is_float32_with_rounded_operands(digits: Dataset, model, impl):
    images = jnp.asarray(digits.train.images[32:64] / np.float32(255))
    labels = jnp.asarray(digits.train.labels[32:64])
    config = TrainConfig(model=model, impl=impl)
    params = quick_params(create_model(config, MNIST))

    def gradients(precision: str):
        network = create_model(dataclasses.replace(config, precision=precision), MNIST)
        mask = jnp.ones(len(labels))

        def loss(params):
            logits = network.apply({"params": params}, images)
            assert logits.dtype == jnp.float32
            return batch_metrics(logits, labels, mask)[0]

        return jax.jit(jax.grad(loss))(params)

    want, got = gradients("float32"), gradients("bfloat16")
    for w, g in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        assert g.dtype == jnp.float32
        error = np.linalg.norm(g - w) / np.linalg.norm(w)
        assert 1e-5 < error < 0.15
