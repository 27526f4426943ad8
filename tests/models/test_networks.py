"""Parameter counts, shapes, dropout, and the LSTM compared with a loop."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.networks import network_gradients

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Dataset, Split
from mnist_jax.errors import InputError
from mnist_jax.models.layers import Dropout
from mnist_jax.models.networks import (
    count_params,
    create_model,
)
from mnist_jax.testing import assert_trees_close

MODELS = ("mlp", "lstm", "cnn")
COUNTS = {"mlp": 118_282, "lstm": 81_674, "cnn": 93_322}


@pytest.mark.parametrize("model", COUNTS)
def test_parameter_count_is_exact(model):
    network = create_model(TrainConfig(model=model), MNIST)
    assert count_params(network, IMAGE_SHAPE) == COUNTS[model]


def test_stages_that_leave_no_pixel_are_refused():
    config = TrainConfig(model="cnn", conv=("8:k7:pool3", "8:k7", "8:k7"))
    with pytest.raises(InputError, match="--conv: stage 3 leaves no pixel"):
        create_model(config, MNIST)


@pytest.mark.parametrize(
    "model, impl", [("lstm", "cpu"), ("cnn", "cpu"), ("cnn", "gpu")]
)
def test_implementations_agree_on_real_digits(digits: Dataset, model, impl):
    # In the first 32 digits a ReLU input is 1e-7, whose sign depends on rounding.
    split = Split(*(array[32:64] for array in digits.train))
    (got, metrics), (want, wanted) = (
        network_gradients(TrainConfig(model=model, impl=chosen), split)
        for chosen in (impl, "plain")
    )
    np.testing.assert_allclose(metrics.loss_sum, wanted.loss_sum, rtol=1e-5)
    assert_trees_close(got, want, 1e-4)


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
    impl = getattr(model, "impl", "plain")
    assert impl == {"cpu": "cpu", "gpu": "gpu", "tpu": "plain"}[backend]


@pytest.mark.parametrize(
    "model, impl", [*itertools.product(MODELS, ["plain", "cpu"]), ("cnn", "gpu")]
)
def test_bfloat16_is_float32_with_rounded_operands(digits: Dataset, model, impl):
    split = Split(*(array[32:64] for array in digits.train))
    (want, _), (got, metrics) = (
        network_gradients(
            TrainConfig(model=model, impl=impl, precision=precision), split, jit=jax.jit
        )
        for precision in ("float32", "bfloat16")
    )
    assert metrics.loss_sum.dtype == jnp.float32
    for w, g in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        assert g.dtype == jnp.float32
        error = np.linalg.norm(g - w) / np.linalg.norm(w)
        assert 1e-5 < error < 0.15
