"""Fast stages equal lax.conv_general_dilated, bias, activation and nn.max_pool."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compilation import users_jit
from helpers.stages import CASES, assert_same, random_arrays, run_stage

from mnist_jax.models import conv_cpu
from mnist_jax.models.ops_cpu import convolve

FIRST = dict(strides=1, padding="VALID", activation="relu", pool=2)


def blank_images(background):
    """Returns images [8,28,28,1], one random stroke each on a constant background."""
    rng = np.random.default_rng(0)
    images = np.zeros((8, 28, 28, 1), np.float32)
    for image in images:
        row, col = rng.integers(4, 16, 2)
        image[row : row + 7, col : col + 5] = rng.random((7, 5, 1))
    return jnp.asarray(images + background)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_equals_the_plain_implementation(case):
    size, strides, padding, channels, pool, activation = case
    stage = dict(strides=strides, padding=padding, activation=activation, pool=pool)
    # With 32 channels, Winograd's rounding errors reach 1.01e-5 (jax 0.12).
    atol = 2e-5 if channels == 32 else 1e-5
    arrays = random_arrays(15, 18, size, channels, 8)
    assert_same(convolve, stage, arrays, atol, jax.jit)


@pytest.mark.parametrize(
    "size, channels, padding", [(3, 1, "SAME"), (3, 32, "SAME"), (5, 2, "VALID")]
)
def test_float32_stays_float32_under_x64(size, channels, padding):
    arrays = random_arrays(15, 18, size, channels, 8)
    stage = {**FIRST, "padding": padding}
    with jax.enable_x64(True):
        for array in assert_same(convolve, stage, arrays, 2e-5):
            assert array.dtype == jnp.float32


@pytest.mark.parametrize("channels", [4, 32])
def test_chunks_of_a_large_batch_equal_the_whole(monkeypatch, channels):
    arrays = random_arrays(15, 18, 3, channels, 8)
    monkeypatch.setattr(conv_cpu, "_LARGEST_IN_CACHE", 0)
    monkeypatch.setattr(conv_cpu, "_CHUNK", 0)
    stage = conv_cpu._Stage((1, 1), "relu", (1, 1), (1, 1))
    assert conv_cpu._count_chunks(*arrays[:2], stage) == len(arrays[0])
    assert_same(convolve, FIRST, arrays, 2e-5)


@pytest.mark.parametrize("background", [0.0, -0.4242])
@pytest.mark.parametrize("channels,size", [(1, 3), (3, 3), (32, 3)])
def test_ties_on_blank_areas_go_to_the_first_maximum(background, channels, size):
    x = blank_images(background) * jnp.linspace(0.5, 1.5, channels)[None, None, None]
    _, kernel, bias = random_arrays(1, 1, size, channels, 8)
    stage = dict(strides=1, padding="SAME", activation="linear", pool=2)
    assert_same(convolve, stage, (x, kernel, bias))


def test_unused_gradient_of_the_images_is_not_computed():
    arrays = random_arrays(28, 28, 3, 1, 8, batch=4)

    def compiled(argnums):
        grad = jax.grad(lambda *a: jnp.sum(run_stage(convolve, *a, **FIRST)), argnums)
        return users_jit(grad).lower(*arrays).compile().as_text()

    gradient_of_tiles = f"f32[{4 * 4 * 13 * 13},{3 * 3}]"
    assert gradient_of_tiles in compiled((0, 1, 2))
    assert gradient_of_tiles not in compiled((1, 2))
