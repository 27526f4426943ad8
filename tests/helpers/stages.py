"""Convolution stages and the comparison of an implementation with the plain one."""

from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from helpers.compilation import users_jit
from helpers.operations import NHWC, results
from mnist_jax.models.activations import ACTIVATIONS


def plain_stage(x, kernel, bias, *, strides, padding, activation, pool):
    """Runs a stage by lax and Flax: `[B,H,W,C] -> [B,h,w,F]`."""
    x = lax.conv_general_dilated(
        x, kernel, (strides, strides), padding, dimension_numbers=NHWC
    )
    x = ACTIVATIONS[activation](x + bias[None, None, None, :])
    return nn.max_pool(x, (pool, pool), (pool, pool))


def run_stage(convolve, x, kernel, bias, *, strides, padding, activation, pool):
    """Runs a stage by `convolve`, which has the parameters of lax's primitive."""
    strides = strides, strides
    return convolve(
        x,
        kernel,
        bias,
        activation=activation,
        pool=(pool, pool),
        window_strides=strides,
        padding=lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding),
        dimension_numbers=lax.conv_dimension_numbers(x.shape, kernel.shape, NHWC),
        lhs_dilation=(1, 1),
        rhs_dilation=(1, 1),
        feature_group_count=1,
        batch_group_count=1,
        preferred_element_type=None,
    )


def assert_same(convolve, stage, arrays, atol=1e-5, jit=users_jit):
    """Compares with plain, relative to each array's max; returns the fast results."""
    want = results(partial(plain_stage, **stage), *arrays)
    got = results(partial(run_stage, convolve, **stage), *arrays, jit=jit)
    for name, a, b in zip(("y", "x", "kernel", "bias"), got, want, strict=True):
        assert a.shape == b.shape, name
        scale = np.max(np.abs(b))
        np.testing.assert_allclose(
            a / scale, b / scale, rtol=0, atol=atol, err_msg=name
        )
    return got


def random_arrays(height, width, size, channels, features, batch=3):
    rng = np.random.default_rng(0)
    shape = batch, height, width, channels
    scale = 1 / np.sqrt(size * size * channels)  # for outputs near 1
    arrays = (
        rng.normal(size=shape),
        rng.normal(size=(size, size, channels, features)) * scale,
        rng.normal(size=features),
    )
    return [jnp.asarray(array, jnp.float32) for array in arrays]


# (kernel, strides, padding, channels, pool, activation): each pair of values at least
# once, kernel sizes 1 to 7, all three algorithms.
CASES = [
    (1, 1, "SAME", 2, 2, "relu"),
    (1, 2, "SAME", 1, 1, "linear"),
    (1, 2, "VALID", 2, 2, "linear"),
    (2, 1, "SAME", 1, 3, "tanh"),
    (2, 2, "VALID", 3, 3, "relu"),
    (3, 1, "SAME", 32, 2, "tanh"),
    (3, 1, "VALID", 32, 2, "linear"),
    (3, 1, "SAME", 32, 1, "relu"),
    (3, 1, "VALID", 32, 3, "relu"),
    (3, 1, "VALID", 3, 2, "relu"),
    (3, 1, "VALID", 1, 2, "relu"),
    (3, 1, "VALID", 3, 1, "relu"),
    (3, 2, "SAME", 2, 2, "relu"),
    (3, 2, "VALID", 1, 2, "tanh"),
    (3, 2, "SAME", 1, 1, "relu"),
    (3, 1, "VALID", 2, 3, "linear"),
    (4, 1, "SAME", 1, 1, "linear"),
    (4, 2, "VALID", 2, 1, "tanh"),
    (5, 1, "SAME", 1, 2, "relu"),
    (5, 1, "VALID", 2, 2, "relu"),
    (5, 2, "SAME", 2, 3, "linear"),
    (6, 2, "SAME", 1, 1, "relu"),
    (7, 1, "SAME", 2, 1, "relu"),
    (7, 2, "VALID", 1, 2, "relu"),
    (7, 2, "SAME", 2, 1, "tanh"),
]
