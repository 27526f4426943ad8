"""The fast LSTM layer equals the plain cell: values and all four gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mnist_jax.fast_lstm import lstm

ACTIVATIONS = {"tanh": jnp.tanh, "relu": jax.nn.relu}


def plain_cell(act, params, carry, row):
    """One step of the textbook LSTM."""
    kernel, recurrent_kernel, bias = params
    h, c = carry
    z = row @ kernel + h @ recurrent_kernel + bias[None, :]
    i, f, g, o = jnp.split(z, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * act(g)
    h = jax.nn.sigmoid(o) * act(c)
    return (h, c), h


def plain_scan(x, *params, activation, return_sequences):
    """The layer as a `lax.scan` over rows."""
    zeros = jnp.zeros((x.shape[0], params[1].shape[0]))
    cell = functools.partial(plain_cell, ACTIVATIONS[activation], params)
    (h, _), hs = lax.scan(cell, (zeros, zeros), x.swapaxes(0, 1))
    return hs.swapaxes(0, 1) if return_sequences else h


def plain_loop(x, *params, activation, return_sequences):
    """The layer as a Python loop over rows."""
    zeros = jnp.zeros((x.shape[0], params[1].shape[0]))
    carry, hs = (zeros, zeros), []
    for t in range(x.shape[1]):
        carry, h = plain_cell(ACTIVATIONS[activation], params, carry, x[:, t])
        hs.append(h)
    return jnp.stack(hs, axis=1) if return_sequences else hs[-1]


def make_inputs(batch, steps, inputs, units, seed=0, scale=1.0):
    """Make x, kernel, recurrent kernel and bias of a layer."""
    rng = np.random.default_rng(seed)
    shapes = [(batch, steps, inputs), (inputs, 4 * units), (units, 4 * units)]
    arrays = [rng.standard_normal(s) / np.sqrt(s[-2]) for s in shapes]
    arrays[0] = arrays[0] * np.sqrt(steps)
    arrays.append(rng.standard_normal(4 * units))
    return [jnp.asarray(scale * a, jnp.float32) for a in arrays]


def values_and_gradients(layer, args, **static):
    """Return the outputs and the gradients of a loss that weighs each of them."""

    def loss(*args):
        y = layer(*args, **static)
        weights = jnp.asarray(np.random.default_rng(9).standard_normal(y.shape))
        return jnp.sum(y * weights), y

    grad = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True))
    grads, y = grad(*args)
    return [y, *grads]


def assert_close(actual, expected, tolerance=1e-5):
    """Assert that arrays agree, relative to the largest entry of each."""
    assert len(actual) == len(expected)
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert np.isfinite(b).all()
        error = np.abs(a - b).max() / (np.abs(b).max() + 1e-6)
        assert error < tolerance


@pytest.mark.parametrize("return_sequences", [True, False])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize(
    "shape", [(3, 5, 4, 8), (1, 1, 2, 3), (1, 6, 7, 5), (4, 2, 3, 3)]
)
def test_equals_plain_scan_and_loop(shape, activation, return_sequences):
    args = make_inputs(*shape)
    static = dict(activation=activation, return_sequences=return_sequences)
    actual = values_and_gradients(lstm, args, **static)
    assert_close(actual, values_and_gradients(plain_scan, args, **static))
    assert_close(actual, values_and_gradients(plain_loop, args, **static))
