"""Fast stages equal lax.conv_general_dilated, bias, activation and nn.max_pool."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compilation import users_jit
from helpers.stages import CASES, assert_same, random_arrays, value_and_grads
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from mnist_jax.models import conv_cpu
from mnist_jax.models.layers import conv_pool as plain_conv_pool
from mnist_jax.models.layers import fast_conv_pool as conv_pool

pytestmark = pytest.mark.slow

FIRST = dict(strides=1, padding="VALID", activation="relu", pool=2)
LAST = dict(strides=1, padding="VALID", activation="relu", pool=1)


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
    assert_same(conv_pool, stage, arrays, atol, jax.jit)


@pytest.mark.parametrize(
    "size, channels, padding", [(3, 1, "SAME"), (3, 32, "SAME"), (5, 2, "VALID")]
)
def test_float32_stays_float32_under_x64(size, channels, padding):
    arrays = random_arrays(15, 18, size, channels, 8)
    stage = {**FIRST, "padding": padding}
    with jax.enable_x64(True):
        for array in assert_same(conv_pool, stage, arrays, 2e-5):
            assert array.dtype == jnp.float32


def test_cases_cover_all_algorithms():
    stages = [
        conv_cpu._Stage((strides, strides), activation, (pool, pool), (1, 1))
        for _, strides, _, _, pool, activation in CASES
    ]
    kernels = [jnp.zeros((c[0], c[0], c[3], 8)) for c in CASES]
    images = [jnp.zeros((2, 15, 18, c[3])) for c in CASES]
    algorithms = set(map(conv_cpu._choose_algorithm, images, kernels, stages))
    assert len(algorithms) == 3


@pytest.mark.parametrize("channels", [4, 32])
def test_chunks_of_a_large_batch_equal_the_whole(monkeypatch, channels):
    arrays = random_arrays(15, 18, 3, channels, 8)
    monkeypatch.setattr(conv_cpu, "_LARGEST_IN_CACHE", 0)
    monkeypatch.setattr(conv_cpu, "_CHUNK", 0)
    stage = conv_cpu._Stage((1, 1), "relu", (1, 1), (1, 1))
    assert conv_cpu._count_chunks(*arrays[:2], stage) == len(arrays[0])
    assert_same(conv_pool, FIRST, arrays, 2e-5)


@pytest.mark.parametrize("background", [0.0, -0.4242])
@pytest.mark.parametrize("channels,size", [(1, 3), (3, 3), (32, 3)])
def test_ties_on_blank_areas_go_to_the_first_maximum(background, channels, size):
    x = blank_images(background) * jnp.linspace(0.5, 1.5, channels)[None, None, None]
    _, kernel, bias = random_arrays(1, 1, size, channels, 8)
    stage = dict(strides=1, padding="SAME", activation="linear", pool=2)
    assert_same(conv_pool, stage, (x, kernel, bias))


@pytest.fixture(scope="module")
def network_gradients():
    """Gradients of a network's parameters: the plain and the fast implementation."""

    def make(stage_fn):
        def loss(params, x):
            for (kernel, bias), stage in zip(params, (FIRST, FIRST, LAST), strict=True):
                x = stage_fn(x, kernel, bias, **stage)
            return jnp.sum(x * jnp.cos(jnp.arange(x.size).reshape(x.shape)))

        return jax.grad(loss)

    return jax.jit(make(plain_conv_pool)), users_jit(make(conv_pool))


@pytest.mark.parametrize("mean", [0.0, 0.1307])
def test_whole_network_has_the_same_gradients_on_real_digits(
    digits, mean, network_gradients
):
    images = jnp.asarray(digits.train.images[:16, :, :, None], jnp.float32)
    images = (images / 255 - mean) / 0.3081
    params, _ = epoch_arguments()
    want, got = (gradients(params, images) for gradients in network_gradients)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.max(np.abs(b)))


def test_ties_on_real_images_go_to_the_first_maximum(digits):
    images = jnp.asarray(digits.train.images[:64, :, :, None], jnp.float32) / 255 - 0.13
    (kernel, bias), (kernel_2, _), _ = epoch_arguments()[0]
    x = plain_conv_pool(images, kernel, bias + 0.1, **FIRST)
    whole = {**LAST, "activation": "linear"}
    y = plain_conv_pool(x, kernel_2, jnp.zeros(8), **whole)
    phases = jnp.stack([y[:, r:10:2, s:10:2] for r in range(2) for s in range(2)])
    ranked = jnp.sort(phases, 0)
    ties = ranked[-1] == ranked[-2]
    assert jnp.sum(ties) > 500
    stage = conv_cpu._Stage((1, 1), "linear", (2, 2), (1, 1))
    pooled, _ = conv_cpu._winograd_forward(x, kernel_2, jnp.zeros(8), stage)
    np.testing.assert_array_equal(jnp.imag(pooled), jnp.argmax(phases, 0))


def test_all_negative_windows_have_no_gradient_under_relu():
    x, kernel, bias = random_arrays(12, 12, 3, 1, 4)
    arrays = x, kernel, bias - 1e3
    _, *grads = value_and_grads(conv_pool, FIRST, arrays, jax.jit)
    assert all(not np.any(grad) for grad in grads)


def test_vmap_over_parameters_equals_a_loop():
    x, kernel, bias = random_arrays(9, 9, 3, 32, 4, batch=2)
    kernels, biases = jnp.stack([kernel, 2 * kernel]), jnp.stack([bias, -bias])

    def loss(kernel, bias):
        return jnp.sum(conv_pool(x, kernel, bias, **FIRST) ** 2)

    grad = jax.value_and_grad(loss, (0, 1))
    together = users_jit(jax.vmap(grad))(kernels, biases)
    one = jax.jit(grad)
    for seed in range(2):
        alone = one(kernels[seed], biases[seed])
        for a, b in zip(*map(jax.tree.leaves, (together, alone)), strict=True):
            np.testing.assert_allclose(a[seed], b, rtol=1e-4, atol=1e-3)


def make_epoch(stage_fn):
    """Returns three SGD steps of a three-stage CNN in a scan, as one function.

    The stages use all three algorithms; `params` is a list of (kernel, bias).
    """

    def logits(params, images):
        x = images
        for (kernel, bias), stage in zip(params, (FIRST, FIRST, LAST), strict=True):
            x = stage_fn(x, kernel, bias, **stage)
        return jnp.mean(x, axis=(1, 2))

    def step(params, images):
        loss, grads = jax.value_and_grad(lambda p: jnp.mean(logits(p, images) ** 2))(
            params
        )
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss

    return lambda params, images: lax.scan(step, params, images)


def epoch_arguments():
    rng = np.random.default_rng(0)
    shapes = (3, 3, 1, 32), (3, 3, 32, 8), (3, 3, 8, 4)
    params = [
        (jnp.asarray(rng.normal(size=s) / s[2], jnp.float32), jnp.zeros(s[3]))
        for s in shapes
    ]
    return params, jnp.stack([blank_images(v) for v in (0.0, 0.1, 0.2)])


@pytest.fixture(scope="module")
def sharded_epoch():
    """The compiled epoch on a mesh with one device."""
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    replicated = PartitionSpec()
    epoch = jax.shard_map(
        make_epoch(conv_pool),
        mesh=mesh,
        in_specs=replicated,
        out_specs=replicated,
        check_vma=False,
    )
    return users_jit(epoch).lower(*epoch_arguments()).compile()


def test_training_in_a_sharded_scan_equals_the_plain_implementation(sharded_epoch):
    args = epoch_arguments()
    want = jax.jit(make_epoch(plain_conv_pool))(*args)
    got = sharded_epoch(*args)
    for a, b in zip(*map(jax.tree.leaves, (got, want)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_compiled_epoch_has_no_convolutions(sharded_epoch):
    text = sharded_epoch.as_text()
    assert " while(" in text
    assert "convolution(" not in text
    assert "select-and-scatter" not in text
    # The calls that keep XLA:CPU from repeating elementwise operations are kept.
    assert " call(" in text


def test_unused_gradient_of_the_images_is_not_computed():
    arrays = random_arrays(28, 28, 3, 1, 8, batch=4)

    def compiled(argnums):
        grad = jax.grad(lambda *a: jnp.sum(conv_pool(*a, **FIRST)), argnums)
        return users_jit(grad).lower(*arrays).compile().as_text()

    gradient_of_tiles = f"f32[{4 * 4 * 13 * 13},{3 * 3}]"
    assert gradient_of_tiles in compiled((0, 1, 2))
    assert gradient_of_tiles not in compiled((1, 2))
