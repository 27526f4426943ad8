"""The stages for GPUs equal lax.conv_general_dilated and nn.max_pool, on a CPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compilation import users_jit
from helpers.operations import results
from helpers.stages import CASES, assert_same, plain_stage, random_arrays, run_stage

from mnist_jax.models.conv_gpu import convolve

STAGE = dict(strides=1, padding="SAME", activation="linear", pool=2)
BOTH = partial(plain_stage, **STAGE), partial(run_stage, convolve, **STAGE)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_equals_the_plain_implementation(case):
    size, strides, padding, channels, pool, activation = case
    stage = dict(strides=strides, padding=padding, activation=activation, pool=pool)
    assert_same(convolve, stage, random_arrays(15, 18, size, channels, 8), jit=jax.jit)


@pytest.mark.parametrize("channels", [1, 2])
def test_of_equal_values_the_first_has_the_gradient(channels):
    """Images and kernels of small integers, whose convolutions have no rounding."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.integers(0, 2, (3, 12, 12, channels)), jnp.float32)
    kernel = jnp.asarray(rng.integers(-1, 2, (3, 3, channels, 4)), jnp.float32)
    arrays = x, kernel, jnp.zeros(4)
    want, got = (results(f, *arrays, jit=users_jit) for f in BOTH)
    np.testing.assert_array_equal(got[0], want[0])
    for a, b in zip(got[1:], want[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2])
def test_bfloat16_stays_bfloat16(channels):
    arrays = [a.astype(jnp.bfloat16) for a in random_arrays(12, 12, 3, channels, 4)]
    want, got = (results(f, *arrays, jit=users_jit) for f in BOTH)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.bfloat16
        scale = np.max(np.abs(b)).astype(np.float32)
        np.testing.assert_allclose(*map(np.float32, (a, b)), rtol=0, atol=0.03 * scale)


@pytest.mark.parametrize("channels", [1, 2])
def test_nan_reaches_the_outputs(channels):
    x, kernel, bias = random_arrays(12, 12, 3, channels, 4)
    x = x.at[0, 5, 5, 0].set(jnp.nan)
    want, got = (f(x, kernel, bias) for f in BOTH)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
