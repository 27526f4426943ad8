"""`BatchNorm` for CPUs, compared with Flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mnist_jax.models.batch_norm import BatchNorm
from mnist_jax.testing import check_same_tree

RNG = np.random.default_rng(0)


def outputs(module, variables, x, dy):
    """Returns outputs, running statistics and gradients of a training step."""

    def run(params, x):
        y, updated = module.apply({**variables, "params": params}, x, mutable=True)
        return y, updated["batch_stats"]

    y, vjp, stats = jax.vjp(run, variables["params"], x, has_aux=True)
    return y, stats, vjp(dy)


@pytest.mark.parametrize("shape", [(16, 6, 5, 8), (300, 3), (8, 1, 1, 4)])
def test_values_statistics_and_gradients_are_those_of_flax(shape):
    x = jnp.asarray(RNG.normal(1.5, 2.0, shape), jnp.float32)
    dy = jnp.asarray(RNG.normal(size=shape), jnp.float32)
    plain, fast = (kind(False, momentum=0.9) for kind in (nn.BatchNorm, BatchNorm))
    variables = plain.init(jax.random.key(0), x)
    check_same_tree(fast.init(jax.random.key(0), x), variables, 0.0)
    params = {
        name: leaf + RNG.normal(0, 0.3, leaf.shape).astype(np.float32)
        for name, leaf in variables["params"].items()
    }
    variables = {**variables, "params": params}
    want = jax.jit(outputs, static_argnums=0)(plain, variables, x, dy)
    got = jax.jit(outputs, static_argnums=0)(fast, variables, x, dy)
    check_same_tree(got, want, 1e-4)


def test_evaluation_uses_the_running_statistics():
    x = jnp.asarray(RNG.normal(size=(4, 3, 3, 2)), jnp.float32)
    variables = nn.BatchNorm(True).init(jax.random.key(0), x)
    stats = {"mean": jnp.array([0.5, -1.0]), "var": jnp.array([2.0, 0.3])}
    variables = {**variables, "batch_stats": stats}
    want = nn.BatchNorm(True).apply(variables, x)
    np.testing.assert_allclose(BatchNorm(True).apply(variables, x), want, atol=1e-6)


def test_constant_channels_have_no_variance():
    """Rounding makes the mean of squares less the square of the mean negative."""
    x = jnp.full((64, 5), 1.1, jnp.float32)
    y, variables = BatchNorm(False).init_with_output(jax.random.key(0), x)
    assert np.all(np.isfinite(y)) and np.all(np.abs(y) < 1.0)
