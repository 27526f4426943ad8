"""Parameter counts, shapes and the LSTM against a loop over rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnist_jax.config import default_config
from mnist_jax.data.datasets import Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.layers import Dropout, LSTMLayer, lstm_cell
from mnist_jax.models.networks import (
    CNN,
    LSTM,
    MLP,
    count_params,
    create_model,
    init_params,
)

COUNTS = {
    "mlp": (default_config("mlp"), 118_282),
    "lstm": (default_config("lstm"), 81_674),
    "cnn": (default_config("cnn"), 93_322),
    "av_dnn": (default_config("mlp", hidden=(128, 128)), 118_282),
    "av_lstm": (default_config("lstm", lstm_units=(128, 128), hidden=(32,)), 216_426),
    "av_cnn": (
        default_config("cnn", conv=("32:linear:pool2",), hidden=(100,)),
        542_230,
    ),
    "ml10_mlp": (default_config("mlp", hidden=(32,)), 25_450),
    "fj_fc": (default_config("mlp", hidden=(500, 100)), 443_610),
    "fj_cnn_pool": (
        default_config("cnn", conv=("16:same:pool2", "32:same:pool2"), hidden=()),
        20_490,
    ),
    "fj_cnn_stride": (
        default_config("cnn", conv=("16:same:s2", "32:same:s2"), hidden=()),
        20_490,
    ),
    "cv_cnn": (default_config("cnn", conv=("8:linear:pool2",), hidden=()), 13_610),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count_is_exact(name):
    config, parameters = COUNTS[name]
    assert count_params(create_model(config)) == parameters


@pytest.mark.parametrize("model", [MLP(), LSTM(), CNN()])
def test_logits_have_one_row_per_image(model):
    params = init_params(model, jax.random.key(0))
    images = jnp.ones((3, 28, 28))
    logits = model.apply({"params": params}, images)
    assert logits.shape == (3, 10) and logits.dtype == jnp.float32


@pytest.mark.parametrize("return_sequences", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_scan_lstm_equals_loop_over_rows(digits: Dataset, activation, return_sequences):
    rows = jnp.asarray(digits.test.images[:5] / np.float32(255))
    layer = LSTMLayer(16, activation, return_sequences)
    params = layer.init(jax.random.key(0), rows)["params"]
    h = c = jnp.zeros((5, 16))
    states = []
    for row in range(28):
        (h, c), _ = lstm_cell(
            (h, c),
            rows[:, row],
            params["kernel"],
            params["recurrent_kernel"],
            params["bias"],
            activation,
        )
        states.append(h)
    want = jnp.stack(states, axis=1) if return_sequences else h
    np.testing.assert_allclose(
        layer.apply({"params": params}, rows), want, rtol=1e-5, atol=1e-6
    )


def test_lstm_starts_as_keras_starts_it():
    layer = LSTMLayer(8)
    params = layer.init(jax.random.key(1), jnp.zeros((1, 3, 5)))["params"]
    assert params["bias"].tolist() == [0.0] * 8 + [1.0] * 8 + [0.0] * 16
    recurrent = params["recurrent_kernel"]
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(8), atol=1e-5)
    limit = np.sqrt(6 / (5 + 32))
    assert 0.8 * limit < float(jnp.abs(params["kernel"]).max()) <= limit


@pytest.mark.parametrize("model", ["lstm", "cnn"])
def test_fast_and_plain_kernels_agree_on_real_digits(digits: Dataset, model):
    # With the first 32 digits an input of a ReLU is 1e-7, whose sign rounding decides.
    images = jnp.asarray(digits.train.images[32:64] / np.float32(255))
    labels = jnp.asarray(digits.train.labels[32:64])
    plain = create_model(default_config(model, kernels="plain"))
    fast = create_model(default_config(model, kernels="fast"))
    params = init_params(plain, jax.random.key(0))
    shapes = jax.tree.map(jnp.shape, init_params(fast, jax.random.key(0)))
    assert shapes == jax.tree.map(jnp.shape, params)

    def loss(params, model):
        logits = model.apply({"params": params}, images)
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(32), labels])

    value_and_grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    want, want_grads = value_and_grad(params, plain)
    got, got_grads = value_and_grad(params, fast)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves(got_grads), jax.tree.leaves(want_grads), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max()))


def test_dropout_acts_in_training_only():
    model = MLP(hidden=(64,), dropout=(0.5,))
    params = init_params(model, jax.random.key(0))
    images = jnp.ones((2, 28, 28))

    def logits(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply({"params": params}, images, train=train, rngs=rngs)

    assert np.any(logits(True, 0) != logits(True, 1))
    np.testing.assert_array_equal(logits(False, 0), logits(False, 1))


def test_dropout_keeps_its_share_and_the_mean():
    ones = jnp.ones((64, 1000))
    dropped = Dropout(0.2).apply({}, ones, True, 0, rngs={"dropout": jax.random.key(0)})
    values, counts = np.unique(dropped, return_counts=True)
    np.testing.assert_array_equal(values, np.float32([0, 1.25]))
    assert abs(counts[0] / ones.size - 0.2) < 0.01
    # No two images have one mask: they agree in 0.8 * 0.8 + 0.2 * 0.2 of their values.
    agree = [np.mean(dropped[0] == other) for other in dropped[1:]]
    assert 0.6 < min(agree) and max(agree) < 0.76


@pytest.mark.parametrize("model", [MLP(dropout=(0.5,)), LSTM((4, 4), dropout=(0.2,))])
def test_parts_of_a_batch_have_the_masks_of_the_whole(model):
    params = init_params(model, jax.random.key(0))
    images = jax.random.uniform(jax.random.key(1), (6, 28, 28))

    def logits(images, first):
        rngs = {"dropout": jax.random.key(2)}
        return model.apply(
            {"params": params}, images, train=True, first=first, rngs=rngs
        )

    parts = [logits(images[:4], 0), logits(images[4:], 4)]
    np.testing.assert_allclose(
        np.concatenate(parts), logits(images, 0), rtol=1e-5, atol=1e-6
    )
    assert np.abs(logits(images[4:], 0) - parts[1]).max() > 1e-3


def test_stages_that_leave_no_pixel_are_refused():
    with pytest.raises(InputError, match="stage 3 .* leaves no pixel"):
        default_config("cnn", conv=("8:pool3", "8:pool3", "8:k5"))
