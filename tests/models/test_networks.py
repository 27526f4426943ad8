"""Whole networks: parameter counts, implementations, precisions and dropout."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compilation import users_jit

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Dataset, Shapes, Split
from mnist_jax.errors import InputError
from mnist_jax.models.layers import Dropout
from mnist_jax.models.networks import count_params, create_model, init_model
from mnist_jax.testing import assert_trees_close
from mnist_jax.testing.steps import make_split, preprocess
from mnist_jax.training.steps import batch_gradients

COUNTS = {"mlp": 118_282, "lstm": 81_674, "cnn": 93_322}


@pytest.mark.parametrize("model", COUNTS)
def test_parameter_count_is_exact(model):
    network = create_model(TrainConfig(model=model), MNIST)
    assert count_params(network, IMAGE_SHAPE) == COUNTS[model]


def test_stages_that_leave_no_pixel_are_refused():
    config = TrainConfig(model="cnn", conv=("8:k7:pool3", "8:k7", "8:k7"))
    with pytest.raises(InputError, match="--conv: stage 3 leaves no pixel"):
        create_model(config, MNIST)


def gradients(split: Split, shapes: Shapes = MNIST, jit=users_jit, **fields):
    """Returns the gradients and metrics of a batch for the parameters of seed 0."""
    model = create_model(TrainConfig(**fields), shapes)
    init = jax.jit(partial(init_model, model, image_shape=shapes.image))
    batch = preprocess(split.images), split.labels, jnp.ones(len(split.labels))
    step = jit(partial(batch_gradients, model=model))
    return step(init(jax.random.key(0)), *batch, jax.random.key(1))


@pytest.mark.parametrize(
    "impl, shapes, fields, tolerance",
    [
        ("cpu", MNIST, dict(model="lstm"), 1e-4),
        ("cpu", MNIST, dict(model="cnn"), 1e-4),
        ("gpu", MNIST, dict(model="cnn"), 1e-4),
        ("cpu", Shapes((12, 20), 3), dict(model="lstm", lstm_units=(8,)), 1e-4),
        ("cpu", Shapes((40, 40), 100), dict(model="cnn", conv=("4:pool2", "8")), 1e-4),
        ("cpu", MNIST, dict(model="examples/resnet.py:ResNet"), 1e-3),
        ("cpu", MNIST, dict(model="examples/nnx_cnn.py:CNN"), 1e-3),
    ],
)
def test_implementations_agree(digits: Dataset, impl, shapes, fields, tolerance):
    # In the first 32 digits a ReLU input is 1e-7, whose sign depends on rounding.
    split = Split(*(array[32:48] for array in digits.train))
    if shapes != MNIST:
        split = make_split(6, shapes=shapes)
    (got, metrics), (want, wanted) = (
        gradients(split, shapes, impl=chosen, **fields) for chosen in (impl, "plain")
    )
    assert_trees_close(metrics, wanted, tolerance / 10)
    assert_trees_close(got, want, tolerance)


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
    "model, impl",
    [
        ("mlp", "plain"),
        *(("lstm", impl) for impl in ("plain", "cpu")),
        *(("cnn", impl) for impl in ("plain", "cpu", "gpu")),
    ],
)
def test_bfloat16_is_float32_with_rounded_operands(digits: Dataset, model, impl):
    split = Split(*(array[32:64] for array in digits.train))
    (want, _), (got, metrics) = (
        gradients(split, jit=jax.jit, model=model, impl=impl, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    assert metrics.loss_sum.dtype == jnp.float32
    for w, g in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        assert g.dtype == jnp.float32
        error = np.linalg.norm(g - w) / np.linalg.norm(w)
        assert 1e-5 < error < 0.15
