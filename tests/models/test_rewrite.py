"""Rewritten networks equal plain ones, in values and gradients."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers.operations import NHWC, arrays, results
from jax import lax

from mnist_jax.config import TrainConfig
from mnist_jax.data.batches import epoch_indices
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Split
from mnist_jax.models.networks import create_model, variable_shapes
from mnist_jax.models.rewrite import Rewritten, rewrite, slow_operations
from mnist_jax.testing import assert_trees_close
from mnist_jax.testing.steps import preprocess
from mnist_jax.training.epochs import make_programs
from mnist_jax.training.mesh import eval_indices, make_mesh, replicate
from mnist_jax.training.steps import batch_gradients

# Shapes of image and kernel, strides, padding, dilations of image and kernel, groups.
CONVOLUTIONS = {
    "same": ((9, 8, 3), (3, 3, 3, 5), None, "SAME", None, None, 1),
    "winograd": ((9, 8, 16), (3, 3, 16, 16), None, "SAME", None, None, 1),
    "winograd-5x5": ((9, 8, 16), (5, 5, 16, 16), None, "SAME", None, None, 1),
    "one-channel": ((9, 8, 1), (3, 2, 1, 5), (1, 2), "VALID", None, None, 1),
    "rectangle": ((9, 8, 3), (4, 1, 3, 5), (2, 3), "VALID", None, None, 1),
    "pads": ((9, 8, 3), (3, 3, 3, 5), None, ((2, 0), (-1, 3)), None, None, 1),
    "dilated": ((9, 8, 3), (3, 2, 3, 5), None, "SAME", None, (2, 3), 1),
    "dilated-winograd": ((9, 8, 16), (3, 3, 16, 16), None, "SAME", None, (2, 3), 1),
    "strided-dilated": ((11, 12, 2), (3, 3, 2, 4), (2, 1), "VALID", None, (2, 2), 1),
    "patches": ((14, 14, 1), (7, 7, 1, 6), (7, 7), "VALID", None, None, 1),
    "pointwise": ((6, 5, 4), (1, 1, 4, 3), None, "VALID", None, None, 1),
    "strided-pointwise": ((7, 6, 4), (1, 1, 4, 3), (2, 2), "VALID", None, None, 1),
    "groups": ((6, 5, 6), (3, 3, 2, 9), None, "SAME", None, None, 3),
    "depthwise": ((7, 8, 4), (3, 2, 1, 4), None, "VALID", None, None, 4),
    "depthwise-multiplied": (
        *((7, 8, 3), (3, 3, 1, 6), (2, 1), "SAME", None, None, 3),
    ),
    "depthwise-dilated": (
        *((9, 8, 3), (3, 3, 1, 3), None, ((3, 1), (0, 2)), None, (2, 2), 3),
    ),
    "transposed": ((5, 4, 3), (3, 3, 3, 2), None, ((1, 1), (2, 1)), (2, 2), None, 1),
    "transposed-pads": (
        *((4, 5, 3), (2, 5, 3, 2), None, ((1, 2), (4, 3)), (3, 2), None, 1),
    ),
    "transposed-depthwise": (
        *((4, 5, 3), (3, 3, 1, 3), None, ((2, 1), (1, 1)), (2, 1), None, 3),
    ),
    "transposed-strided": (
        *((4, 5, 3), (3, 3, 3, 2), (2, 1), ((1, 2), (1, 3)), (2, 2), None, 1),
    ),
    "nchw": ((3, 9, 8), (5, 3, 3, 2), None, "SAME", None, None, 1),
    "mixed-layout": ((3, 9, 8), (3, 3, 3, 5), None, "SAME", None, None, 1),
    "line": ((9, 3), (3, 3, 5), (2,), "VALID", None, None, 1),
    "line-transposed": ((9, 3), (4, 3, 5), None, ((0, 2),), (3,), None, 1),
}
LAYOUTS = {  # the others are NHWC
    "nchw": ("NCHW", "OIHW", "NCHW"),
    "mixed-layout": ("NCHW", "HWIO", "NHWC"),
    "line": ("NWC", "WIO", "NWC"),
    "line-transposed": ("NWC", "WIO", "NWC"),
}
# The window, strides, padding and arguments of `lax.reduce_window`.
POOLINGS = {
    "2x2": ((1, 2, 2, 1), (1, 2, 2, 1), "VALID"),
    "3x3-overlapping": ((1, 3, 3, 1), (1, 2, 2, 1), "SAME"),
    "gaps": ((1, 2, 1, 1), (1, 3, 2, 1), "VALID"),
    "same": ((1, 2, 2, 1), (1, 2, 2, 1), "SAME"),
    "channels": ((1, 1, 2, 2), (1, 1, 1, 2), "VALID"),
    "pads": ((1, 3, 2, 1), (1, 1, 3, 1), ((0, 0), (2, 1), (1, 0), (0, 0))),
    "line": ((1, 3, 1), (1, 2, 1), "SAME"),
}


def jaxpr_of(function, *args):
    return jax.make_jaxpr(function)(*args).jaxpr


def check(function, *args, tolerance=2e-5):
    fast = rewrite(function)
    got, want = results(fast, *args), results(function, *args)
    assert_trees_close(got, want, tolerance, tolerance)
    step = jax.grad(lambda *args: fast(*args).sum())
    assert not slow_operations(jaxpr_of(step, *args))


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions(case):
    image, kernel, strides, padding, *dilations, groups = CONVOLUTIONS[case]
    strides, layout = strides or (1,) * (len(image) - 1), LAYOUTS.get(case, NHWC)

    def function(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, strides, padding, *dilations, layout, groups
        )

    inputs = arrays((2, *image), kernel)
    if case == "transposed-strided":  # left as it is
        got, want = results(rewrite(function), *inputs), results(function, *inputs)
        assert_trees_close(got, want, 0)
    else:
        check(function, *inputs)


@pytest.mark.parametrize("case", POOLINGS)
@pytest.mark.parametrize("pool", [lax.max, lax.add], ids=["max", "sum"])
def test_pooling(case, pool):
    size, strides, padding = POOLINGS[case]
    shape = (2, 7, 4) if case == "line" else (2, 7, 8, 4)
    # Of few values, so that windows have ties.
    (x,) = arrays(shape)
    x = jnp.round(2 * x) / 2

    def function(x):
        initial = -jnp.inf if pool is lax.max else 0.0
        return lax.reduce_window(x, initial, pool, size, strides, padding)

    check(function, x)


def test_a_stage_is_fused():
    """Bias, ReLU and pooling of a convolution; ReLU's gradient is 0 at 0."""
    x, kernel = arrays((2, 9, 8, 1), (3, 3, 1, 4))
    bias = jnp.float32([0.0, 0.5, -9.0, 9.0])

    def function(x, kernel, bias):
        x = jnp.where(x > 0.5, x, 0.0)  # ties
        x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", None, None, NHWC)
        return nn.max_pool(nn.relu(x + bias.reshape(1, 1, 1, -1)), (2, 2), (2, 2))

    check(function, x, kernel, bias)
    text = str(jaxpr_of(rewrite(function), x, kernel, bias))
    assert text.count("custom_vjp_call[") == 1


@pytest.mark.parametrize(
    "case", ["same", "winograd", "depthwise", "transposed-depthwise"]
)
def test_float32_stays_float32_under_x64(case):
    with jax.enable_x64(True):
        test_convolutions(case)
        test_pooling("3x3-overlapping", lax.max)
        test_a_stage_is_fused()


def test_a_shared_convolution_is_not_fused():
    x, kernel = arrays((2, 6, 6, 1), (3, 3, 1, 4))

    def function(x, kernel):
        y = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", None, None, NHWC)
        return nn.relu(y) + y

    check(function, x, kernel)


@pytest.mark.parametrize("scale, bias", [(True, True), (True, False), (False, True)])
def test_batch_normalization_is_one_operation(scale, bias):
    x, kernel = arrays((4, 6, 5, 3), (3, 3, 3, 3))
    norm = nn.BatchNorm(False, momentum=0.9, use_scale=scale, use_bias=bias)
    variables = norm.init(jax.random.key(0), x)
    params = variables.get("params", {})

    def function(params, x, kernel):
        # All that the network computes has a gradient, also the running statistics.
        x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", None, None, NHWC)
        y, stats = norm.apply(
            {**variables, "params": params}, x, mutable=list(variables)
        )
        stats = stats["batch_stats"]
        factor, term = jnp.exp(stats["mean"]), stats["var"]
        return y * factor[None, None, None] + term[None, None, None]

    def flat(*leaves):
        *leaves, x, kernel = leaves
        return function(
            jax.tree.unflatten(jax.tree.structure(params), leaves), x, kernel
        )

    args = (*jax.tree.leaves(params), x, kernel)
    check(flat, *args, tolerance=1e-4)
    text = str(jaxpr_of(rewrite(flat), *args))
    assert text.count("custom_vjp_call[") == 2 and "reduce_sum" not in text


def test_constant_channels_have_no_variance():
    """Rounding makes the mean of squares less the square of the mean negative."""
    norm = nn.BatchNorm(False)
    run = rewrite(lambda x: norm.init_with_output(jax.random.key(0), x)[0])
    y = run(jnp.full((64, 5), 1.1, jnp.float32))
    assert np.all(np.isfinite(y)) and np.all(np.abs(y) < 1.0)


def slow(x, kernel):
    x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", None, None, NHWC)
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


@jax.custom_vjp
def straight_through(x):
    return jnp.round(x)


straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (g,))


@pytest.mark.parametrize(
    "function",
    [
        jax.jit(slow),
        jax.checkpoint(slow),
        lambda x, k: lax.scan(lambda c, _: (slow(c, k), c.sum()), x, None, 2)[0],
        lambda x, k: lax.cond(x[0, 0, 0, 0] > 0, slow, lambda x, k: x * k.sum(), x, k),
        lambda x, k: straight_through(slow(x, k)) + jnp.maximum(slow(x, k), 0.1),
        lambda x, k: jax.vmap(lambda x: slow(x[None], k)[0])(x),
    ],
    ids=["jit", "checkpoint", "scan", "cond", "custom_vjp", "vmap"],
)
def test_inner_functions(function):
    check(function, *arrays((2, 6, 5, 2), (3, 3, 2, 2)))


def test_a_while_loop_is_rewritten():
    x, kernel = arrays((2, 6, 5, 2), (3, 3, 2, 2))

    def function(x, kernel):
        return lax.fori_loop(0, x.shape[0] + x[0, 0, 0, 0].astype(int), body(kernel), x)

    def body(kernel):
        return lambda _, x: slow(x, kernel)

    got, want = (jax.jit(f)(x, kernel) for f in (rewrite(function), function))
    assert_trees_close(got, want, 2e-5)
    assert not slow_operations(jaxpr_of(rewrite(function), x, kernel))


def test_float64_is_left_as_it_is():
    with jax.enable_x64(True):
        args = arrays((2, 6, 5, 2), (3, 3, 2, 2), dtype=jnp.float64)
        assert_trees_close(results(rewrite(slow), *args), results(slow, *args), 0)


def test_networks_without_slow_operations_keep_their_bits():
    x, kernel = arrays((64, 28), (28, 10))

    def function(x, kernel):
        return nn.log_softmax(nn.relu(x) @ kernel)

    assert rewrite(function)(x, kernel).tobytes() == function(x, kernel).tobytes()


@pytest.mark.parametrize(
    "equation, left, right",
    [
        ("ij,jk->ik", (5, 4), (4, 3)),
        ("bqhd,bkhd->bhqk", (2, 5, 3, 4), (2, 6, 3, 4)),
        ("ijk,ljk->il", (5, 2, 4), (3, 2, 4)),
        ("i,i->", (5,), (5,)),
    ],
)
def test_products_with_bfloat16_operands(equation, left, right):
    """Operands are rounded in the product and in its gradients; results are float32."""
    inputs = arrays(left, right)

    def function(x, y):
        return jnp.einsum(equation, x, y)

    fast = rewrite(function, "plain", bfloat16=True)
    rounded = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in inputs]
    got, want = results(fast, *inputs), results(function, *rounded)
    assert_trees_close(got[0], want[0], 1e-5)
    assert_trees_close(got[1:], want[1:], 2e-2)


CLASS = re.compile(r"^class (\w+)", re.MULTILINE)
EXAMPLES = [  # the last class of each file
    f"{path.name}:{CLASS.findall(path.read_text())[-1]}"
    for path in sorted(Path("examples").glob("*.py"))
    if path.stem != "quickstart"
]


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_train_without_slow_operations(name):
    model = create_model(TrainConfig(model=f"examples/{name}", impl="cpu"), MNIST)
    variables = variable_shapes(model, (28, 28))
    step = partial(batch_gradients, model=model)
    batch = jnp.zeros((1, 28, 28)), jnp.zeros(1, int), jnp.ones(1), jax.random.key(1)
    assert not slow_operations(jaxpr_of(step, variables, *batch))


@jax.custom_jvp
def custom_pool(x):
    return nn.max_pool(x, (2, 2), (2, 2))


@custom_pool.defjvp
def custom_pool_jvp(primals, tangents):
    return jax.jvp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), primals, tangents)


class CustomPool(nn.Module):
    """A network with an operation that cannot be replaced."""

    @nn.compact
    def __call__(self, images):
        x = custom_pool(nn.Conv(4, (3, 3), strides=3)(images[..., None]))
        return nn.Dense(10)(x.reshape(len(x), -1))


@pytest.mark.parametrize("devices", [1, 2])
def test_what_cannot_be_replaced_runs_step_by_step(devices, digits):
    train, mesh = Split(*(a[:64] for a in digits.train)), make_mesh(devices)
    programs = make_programs(
        Rewritten(CustomPool()), optax.sgd(0.1), preprocess, mesh, IMAGE_SHAPE
    )
    orders = epoch_indices(0, 0, 64, 24)[None]
    split = replicate(train, mesh)
    compiled = programs.compile(orders, split, split, eval_indices(range(64), mesh))
    assert "select_and_scatter_add" in compiled.slow_in_loops
    results = []
    for each in (compiled, programs):
        states, run_keys = each.init_run([0])
        keys = each.epoch_keys(run_keys, 0)
        results.append(each.run_steps(states, split, each.shard(orders), keys))
    assert_trees_close(*results, 1e-4)
