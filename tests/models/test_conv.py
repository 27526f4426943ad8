"""The stages for CPUs and GPUs equal lax and Flax; both are compared on a CPU."""

import functools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.compilation import users_jit
from helpers.operations import NHWC, results, with_gradients
from jax import lax

from mnist_jax.models import conv_cpu, conv_gpu, ops_cpu
from mnist_jax.models.activations import ACTIVATIONS
from mnist_jax.testing import assert_trees_close

CONVOLVE = {"cpu": ops_cpu.convolve, "gpu": conv_gpu.convolve}


class Stage(NamedTuple):
    """A convolution, its activation and its pooling."""

    strides: int = 1
    padding: str = "SAME"
    activation: str = "linear"
    pool: int = 2


FIRST = Stage(padding="VALID", activation="relu")


@functools.cache  # one compilation serves all implementations
def plain_results(stage):
    """Returns a function to a stage's outputs and gradients, by lax and Flax."""

    def run(x, kernel, bias):
        strides = stage.strides, stage.strides
        y = lax.conv_general_dilated(
            x, kernel, strides, stage.padding, dimension_numbers=NHWC
        )
        y = ACTIVATIONS[stage.activation](y + bias[None, None, None, :])
        return nn.max_pool(y, (stage.pool, stage.pool), (stage.pool, stage.pool))

    return jax.jit(with_gradients(run))


def run_stage(backend, stage, x, kernel, bias):
    """Runs a stage by a backend's function, which has the parameters of lax's."""
    strides = stage.strides, stage.strides
    pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, stage.padding)
    return CONVOLVE[backend](
        x,
        kernel,
        bias,
        activation=stage.activation,
        pool=(stage.pool, stage.pool),
        window_strides=strides,
        padding=pads,
        dimension_numbers=lax.conv_dimension_numbers(x.shape, kernel.shape, NHWC),
        lhs_dilation=(1, 1),
        rhs_dilation=(1, 1),
        feature_group_count=1,
        batch_group_count=1,
        preferred_element_type=None,
    )


def assert_same(backend, stage, arrays, tolerance=1e-5, jit=users_jit):
    """Compares outputs and gradients with plain, relative to each array's max."""
    got = results(partial(run_stage, backend, stage), *arrays, jit=jit)
    assert_trees_close(got, plain_results(stage)(*arrays), tolerance)


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


def blank_images(background):
    """Returns images [8,28,28,1], one random stroke each on a constant background."""
    rng = np.random.default_rng(0)
    images = np.zeros((8, 28, 28, 1), np.float32)
    for image in images:
        row, col = rng.integers(4, 16, 2)
        image[row : row + 7, col : col + 5] = rng.random((7, 5, 1))
    return jnp.asarray(images + background)


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


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_stages_equal_the_plain_implementation(case):
    size, strides, padding, channels, pool, activation = case
    arrays = random_arrays(15, 18, size, channels, 8)
    # With 32 channels, Winograd's rounding errors reach 1.01e-5 (jax 0.12).
    for backend, tolerance in ("cpu", 2e-5 if channels == 32 else 1e-5), ("gpu", 1e-5):
        stage = Stage(strides, padding, activation, pool)
        assert_same(backend, stage, arrays, tolerance, jax.jit)


@pytest.mark.parametrize("channels", [4, 32])
def test_chunks_of_a_large_batch_equal_the_whole(monkeypatch, channels):
    arrays = random_arrays(15, 18, 3, channels, 8)
    monkeypatch.setattr(conv_cpu, "_LARGEST_IN_CACHE", 0)
    monkeypatch.setattr(conv_cpu, "_CHUNK", 0)
    jaxpr = jax.make_jaxpr(partial(run_stage, "cpu", FIRST))(*arrays)
    assert "length=3" in str(jaxpr)  # of the loop over images
    assert_same("cpu", FIRST, arrays, 2e-5)


@pytest.mark.parametrize("background", [0.0, -0.4242])
@pytest.mark.parametrize(
    "backend, channels", [("cpu", 1), ("cpu", 3), ("cpu", 32), ("gpu", 1), ("gpu", 2)]
)
def test_ties_on_blank_areas_go_to_the_first_maximum(background, backend, channels):
    x = blank_images(background) * jnp.linspace(0.5, 1.5, channels)[None, None, None]
    _, kernel, bias = random_arrays(1, 1, 3, channels, 8)
    assert_same(backend, Stage(), (x, kernel, bias))


def test_unused_gradient_of_the_images_is_not_computed():
    arrays = random_arrays(28, 28, 3, 1, 8, batch=4)

    def compiled(argnums):
        grad = jax.grad(lambda *a: jnp.sum(run_stage("cpu", FIRST, *a)), argnums)
        return users_jit(grad).lower(*arrays).compile().as_text()

    gradient_of_tiles = f"f32[{4 * 4 * 13 * 13},{3 * 3}]"
    assert gradient_of_tiles in compiled((0, 1, 2))
    assert gradient_of_tiles not in compiled((1, 2))


@pytest.mark.parametrize("channels", [1, 2])
def test_a_gpu_keeps_bfloat16_and_nan(channels):
    arrays = random_arrays(12, 12, 3, channels, 4)
    assert_same("gpu", Stage(), [a.astype(jnp.bfloat16) for a in arrays], 0.03)
    arrays[0] = arrays[0].at[0, 5, 5, 0].set(jnp.nan)
    got, want = run_stage("gpu", Stage(), *arrays), plain_results(Stage())(*arrays)[0]
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
