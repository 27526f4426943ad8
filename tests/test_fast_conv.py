"""Every fast stage against lax.conv_general_dilated, bias, activation, nn.max_pool."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mnist_jax.fast_conv import conv_pool, from_layout, to_layout

ACTIVATIONS = {None: lambda x: x, "relu": jax.nn.relu, "tanh": jnp.tanh}


def plain_conv_pool(x, kernel, bias, *, strides, padding, activation, pool):
    y = lax.conv_general_dilated(
        x,
        kernel,
        (strides, strides),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    y = ACTIVATIONS[activation](y + bias[None, None, None, :])
    return nn.max_pool(y, (pool, pool), (pool, pool)) if pool else y


def fast_conv_pool(x, kernel, bias, **stage):
    return from_layout(conv_pool(to_layout(x), kernel, bias, **stage))


def value_and_grads(fn, x, kernel, bias, weights, **stage):
    def loss(x, kernel, bias):
        y = fn(x, kernel, bias, **stage)
        return jnp.sum(y * weights), y

    (_, y), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(
        x, kernel, bias
    )
    return y, *grads


def assert_same(stage, x, kernel, bias):
    shape = jax.eval_shape(
        lambda *a: plain_conv_pool(*a, **stage), x, kernel, bias
    ).shape
    weights = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    want = value_and_grads(plain_conv_pool, x, kernel, bias, weights, **stage)
    got = value_and_grads(fast_conv_pool, x, kernel, bias, weights, **stage)
    for name, a, b in zip(("value", "x", "kernel", "bias"), got, want, strict=True):
        assert a.shape == b.shape, name
        scale = float(jnp.max(jnp.abs(b))) + 1e-6
        np.testing.assert_allclose(
            a / scale, b / scale, rtol=0, atol=1e-5, err_msg=name
        )


def random_arrays(h, w, size, cin, cout):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, h, w, cin)).astype(np.float32)
    kernel = rng.normal(size=(size, size, cin, cout)).astype(np.float32)
    return x, kernel, rng.normal(size=cout).astype(np.float32)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_matches_plain(size, strides, padding):
    for pool, (h, w) in itertools.product((None, 2, 3), ((17, 18),)):
        act = {None: "tanh", 2: "relu", 3: None}[pool]
        stage = dict(strides=strides, padding=padding, activation=act, pool=pool)
        assert_same(stage, *random_arrays(h, w, size, 2, 3))
