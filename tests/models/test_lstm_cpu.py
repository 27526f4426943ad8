"""The fast LSTM layer equals the plain one: values and all four gradients."""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compilation import users_jit
from helpers.operations import with_gradients

from mnist_jax.models.layers import LSTMLayer
from mnist_jax.models.lstm_cpu import lstm
from mnist_jax.testing import assert_trees_close

SMALL = (3, 5, 4, 8)  # batch, rows, inputs, units
STATICS = [
    {"activation": activation, "return_sequences": return_sequences}
    for activation in ("tanh", "relu")
    for return_sequences in (True, False)
]
each_static = pytest.mark.parametrize(
    "static", STATICS, ids=lambda static: "-".join(map(str, static.values()))
)


def make_inputs(batch, steps, inputs, units, *, seed=0, scale=1.0):
    """Returns x, kernel, recurrent kernel and bias of a layer."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((batch, steps, inputs))
    kernel = scale * rng.standard_normal((inputs, 4 * units)) / inputs**0.5
    recurrent_kernel = scale * rng.standard_normal((units, 4 * units)) / units**0.5
    bias = rng.standard_normal(4 * units)
    return [jnp.asarray(a, jnp.float32) for a in (x, kernel, recurrent_kernel, bias)]


@functools.cache
def fast(**static):
    """Returns the layer with its gradients, compiled as for users."""
    return users_jit(with_gradients(partial(lstm, **static)))


@functools.cache
def plain(**static):
    """Returns the plain layer with its gradients."""

    def run(x, kernel, recurrent_kernel, bias):
        layer = LSTMLayer(len(recurrent_kernel), **static)
        params = dict(kernel=kernel, recurrent_kernel=recurrent_kernel, bias=bias)
        return layer.apply({"params": params}, x)

    return jax.jit(with_gradients(run))


# D < U and D > U, a single row, a single image; gates that saturate.
@each_static
@pytest.mark.parametrize(
    "shape, scale, tolerance",
    [
        (SMALL, 1, 1e-5),
        ((2, 1, 3, 4), 1, 1e-5),
        ((1, 6, 7, 5), 1, 1e-5),
        (SMALL, 30, 1e-4),
    ],
)
def test_equals_the_plain_layer(shape, scale, tolerance, static):
    inputs = make_inputs(*shape, scale=scale)
    run = fast(**static)
    if shape != SMALL:
        run = jax.jit(with_gradients(partial(lstm, **static)))
    assert_trees_close(run(*inputs), plain(**static)(*inputs), tolerance, 1e-10)


@functools.cache
def compiled_for_images(**static):
    """Returns inputs of the shape of images, and the compiled fast layer."""
    inputs = make_inputs(16, 28, 28, 32)
    return inputs, fast(**static).lower(*inputs).compile()


@each_static
def test_equals_the_plain_layer_on_images(static):
    inputs, compiled = compiled_for_images(**static)
    assert_trees_close(compiled(*inputs), plain(**static)(*inputs))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA on CPU")
@each_static
def test_loops_copy_no_array_of_all_rows(static):
    # XLA makes such copies, two per iteration, if it cannot prove that nothing else
    # reads an array that is written in place. They are slow.
    program = compiled_for_images(**static)[1].as_text()
    assert "f32[28,16,128]" in program
    assert not re.search(r"= f32\[28,16,128\]\S* copy\(", program)


@each_static
def test_without_gradient_equals_with(static):
    inputs = make_inputs(*SMALL)
    outputs = users_jit(partial(lstm, **static))(*inputs)
    assert_trees_close(outputs, fast(**static)(*inputs)[0], 1e-6)


@pytest.mark.parametrize("return_sequences", [True, False])
def test_relu_overflow_gives_no_nan_where_plain_is_finite(return_sequences):
    static = {"activation": "relu", "return_sequences": return_sequences}
    mixed = 0
    for seed in range(40):
        scale = 10 ** np.random.default_rng(seed).uniform(0, 6)
        inputs = make_inputs(4, 12, 5, 8, seed=seed, scale=scale)
        actual, expected = jax.device_get(
            (fast(**static)(*inputs), plain(**static)(*inputs))
        )
        for a, b in zip(actual, expected, strict=True):
            assert not np.isnan(a[np.isfinite(b)]).any()
            mixed += 0 < np.isfinite(b).sum() < b.size
    assert mixed
