"""Checks that a network trains correctly, for this project's tests and for your own.

`check_model` runs all of them. Each takes any linen module with
`apply(variables, images, train=...)` that returns logits `[B,classes]`.
"""

import functools
import inspect
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from mnist_jax.config import TrainConfig
from mnist_jax.data.batches import epoch_indices
from mnist_jax.data.pixels import Preprocess
from mnist_jax.data.types import CLASSES, IMAGE_SHAPE, MNIST, Shapes, Split
from mnist_jax.models.custom import instantiate
from mnist_jax.models.layers import resolve_impl
from mnist_jax.models.networks import (
    apply_model,
    check_network,
    create_model,
    init_model,
)
from mnist_jax.models.rewrite import Rewritten, without_rewriting
from mnist_jax.training.checkpoints import named_leaves
from mnist_jax.training.epochs import compute_logits, gather, jit, make_programs
from mnist_jax.training.mesh import make_mesh, replicate, shard_seeds
from mnist_jax.training.prepare import differ, fill_zeros, find_batch_dependence
from mnist_jax.training.steps import TrainState, batch_gradients, train_step

preprocess = Preprocess("scaled")


def make_split(size: int = 64, seed: int = 0, shapes: Shapes = MNIST) -> Split:
    """Returns random images with learnable labels.

    As in MNIST, the last rows are black; the first image is black, the second white.
    """
    rng = np.random.default_rng(seed)
    height, width = shapes.image
    labels = rng.integers(0, shapes.classes, size).astype(np.int32)
    images = rng.integers(0, 100, (size, height, width)).astype(np.uint8)
    images[:, -(height // 4) :] = 0
    # Bright pixels mark the label: every second row, or less where there are many.
    step = min(2 * width, height * width // shapes.classes) or 1
    marked = step * labels[:, None] + np.arange(max(1, step // 2))
    images.reshape(size, -1)[np.arange(size)[:, None], marked % (height * width)] += 150
    images[:1], images[1:2] = 0, 255
    return Split(images, labels)


@functools.lru_cache(maxsize=4)  # one initialization serves all checks of a network
def _init_variables(model: nn.Module, shapes: Shapes) -> Any:
    """Returns the initial variables for seed 0."""
    init = partial(init_model, model, image_shape=shapes.image)
    return jit(init, quick=True)(jax.random.key(0))


def _init_state(
    model: nn.Module, tx: optax.GradientTransformation, shapes: Shapes
) -> TrainState:
    """Returns the initial state for seed 0."""
    stats = dict(_init_variables(model, shapes))
    params = stats.pop("params")
    return TrainState(params, stats, tx.init(params))


def _require(condition: bool, message: str) -> None:
    """Raises AssertionError, also under `python -O`, which skips `assert`."""
    if not condition:
        raise AssertionError(message)


def check_logits(model: nn.Module, shapes: Shapes = MNIST) -> None:
    """Asserts finite logits in evaluation, the same compiled and op by op."""
    images = jnp.asarray(make_split(16, shapes=shapes).images)
    variables = fill_zeros(_init_variables(model, shapes))
    run = partial(compute_logits, preprocess=preprocess)
    compiled = jit(partial(run, model=model))(variables, images)
    eager = np.asarray(run(variables, images, model=without_rewriting(model)))
    finite = np.isfinite(eager).all(axis=1)
    kinds = "a black image", "a white image", "an image with black rows"
    kind = kinds[min(int(np.argmin(finite)), 2)]
    _require(bool(finite.all()), f"logits in evaluation are not finite for {kind}")
    _require(
        eager.min() < 0 or np.abs(eager.sum(axis=1) - 1).max() > 0.01,
        "the outputs are probabilities, which add up to 1; return logits, without "
        "a softmax",
    )
    _require(
        not differ(np.asarray(compiled), eager),
        "the compiled network has other logits in evaluation than its operations one "
        "by one: a fault of XLA, or an operation without a defined result",
    )


def check_batch(model: nn.Module, shapes: Shapes = MNIST) -> None:
    """Asserts that an image's logits do not depend on the batch it is in.

    In training they may depend on the image's index in the batch, as dropout masks do,
    and with batch statistics (`nn.BatchNorm`) on the other images.
    """
    images = make_split(16, shapes=shapes).images
    variables = _init_variables(model, shapes)
    fault = find_batch_dependence(model, preprocess, variables, images)
    _require(not fault, fault)
    if len(variables) > 1:  # batch statistics
        return
    others = images.copy()
    others[:8] = images[:7:-1]

    @partial(jit, quick=True)
    def run(variables: Any, images: jax.Array) -> jax.Array:
        options: Any = dict(train=True, dropout_key=jax.random.key(0))
        return apply_model(model, variables, images, **options)[0].astype(jnp.float32)

    first, second = (
        np.asarray(run(fill_zeros(variables), preprocess(x))) for x in (images, others)
    )
    _require(
        not differ(second[8:], first[8:]),
        "in training the logits of an image depend on the other images of the batch; "
        "compute them from each image alone (nn.Conv and pooling need a channel axis, "
        "as in images[..., None])",
    )


def check_gradients(model: nn.Module, shapes: Shapes = MNIST) -> None:
    """Asserts that gradients are the slopes of the loss, as a custom one may not be.

    The slope in a random direction of each array comes from central differences, in
    float64 if the network can compute in it. One that computes in bfloat16 passes: its
    loss has steps in place of slopes.
    """
    for float64 in (True, False):
        with jax.enable_x64(float64):
            try:
                return _check_slopes(model, shapes)
            except TypeError:  # such as a loop whose state is always float32
                if not float64:
                    raise


def _check_slopes(model: nn.Module, shapes: Shapes) -> None:
    """Does the same with JAX's largest float type."""
    split, rng = make_split(8, shapes=shapes), np.random.default_rng(0)
    start = fill_zeros(_init_variables(model, shapes)), preprocess(split.images)
    variables, images = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), start)
    batch = images, jnp.asarray(split.labels), jnp.ones(8, float), jax.random.key(0)

    def differentiate(variables: Any) -> Any:
        return batch_gradients(variables, *batch, model)

    run = jit(differentiate, quick=True).lower(variables).compile()
    types = set(re.findall(r"\b(bf16|f16|f32|f64)\[", run.as_text()))
    if types & {"bf16", "f16"}:
        return
    # Within a larger step a ReLU may change sides; a smaller one drowns in rounding.
    step, tolerance = (1e-7, 0.01) if types == {"f64"} else (1e-4, 0.2)
    params = variables["params"]
    leaves, treedef = jax.tree.flatten(params)
    gradients = jax.tree.leaves(run(variables)[0]["params"])

    def loss(moved: int, change: np.ndarray) -> float:
        new = [leaf + change if i == moved else leaf for i, leaf in enumerate(leaves)]
        changed = {**variables, "params": jax.tree.unflatten(treedef, new)}
        return float(run(changed)[1].loss_sum)

    found = []
    for i, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
        direction = rng.standard_normal(leaf.shape)
        change = step * direction
        slope = (loss(i, change) - loss(i, -change)) / (2 * step)
        found.append((float(np.sum(direction * gradient)), slope))
    floor = np.abs(found).max() / 30  # gradients that are 0 are rounding errors
    for name, (given, slope) in zip(named_leaves(params), found, strict=True):
        _require(
            abs(given - slope) <= tolerance * (max(abs(given), abs(slope)) + floor),
            f"the gradient of {name} is wrong: in a random direction it gives the loss "
            f"a slope of {given:.6g}, but central differences {slope:.6g}; compare "
            "each custom_vjp with the gradient of the same code without it",
        )


def check_step_learns(
    model: nn.Module, steps: int = 12, shapes: Shapes = MNIST
) -> None:
    """Asserts that training lowers the loss, changes every leaf and stays finite."""
    tx, split = optax.adam(3e-3), make_split(shapes=shapes)
    step = jit(partial(train_step, model=model, tx=tx))
    state = initial = _init_state(model, tx, shapes)
    images, labels, mask = gather(split, jnp.arange(len(split.labels)))
    losses = []
    for i in range(steps):
        key = jax.random.key(i)
        state, metrics = step(state, preprocess(images), labels, mask, key)
        losses.append(float(metrics.loss_sum / metrics.images))
    finite = bool(np.all(np.isfinite(losses)))
    _require(finite, f"losses are not finite: {losses}")
    lowered = np.mean(losses[steps // 2 :]) < losses[0]
    _require(bool(lowered), f"{steps} steps did not lower the loss: {losses}")
    reasons = {
        "params": "the logits do not depend on it, or only through operations that "
        "have no gradient",
        "batch_stats": "give batch normalization use_running_average=not train",
    }
    before, after = (jax.tree.leaves_with_path(s.variables) for s in (initial, state))
    for (path, old), (_, new) in zip(before, after, strict=True):
        name, collection = jax.tree_util.keystr(path), path[0].key
        _require(bool(np.all(np.isfinite(new))), f"{name} is not finite")
        if reason := reasons.get(collection):
            message = f"{name} did not change in {steps} steps: {reason}"
            _require(bool(np.any(old != new)), message)


def check_epoch_equals_steps(
    model: nn.Module,
    devices: int = 1,
    batch_size: int = 24,
    rtol: float = 1e-4,
    shapes: Shapes = MNIST,
) -> None:
    """Asserts that a compiled epoch gives the same result as a Python loop of steps.

    By default the last batch is smaller than the others. With several devices the
    network must accept `batch_offset=`, see `train_step`.
    """
    tx, split = optax.sgd(0.1), make_split(64, shapes=shapes)
    indices = epoch_indices(0, 0, len(split.labels), batch_size)
    programs = make_programs(model, tx, preprocess, make_mesh(devices), shapes.image)
    key, looped = jax.random.key(7), _init_state(model, tx, shapes)
    states, keys = jax.tree.map(lambda leaf: leaf[None], (looped, key))
    states, metrics = programs.run_steps(
        shard_seeds(states, programs.mesh),
        replicate(split, programs.mesh),
        programs.shard(indices[None]),
        shard_seeds(keys, programs.mesh),
    )
    state, metrics = jax.tree.map(lambda leaf: leaf[0], (states, metrics))
    step = jit(partial(train_step, model=model, tx=tx))
    for i, row in enumerate(indices):
        images, labels, mask = gather(split, jnp.asarray(row))
        step_key = jax.random.fold_in(key, i)
        looped, step_metrics = step(looped, preprocess(images), labels, mask, step_key)
        np.testing.assert_allclose(
            metrics.loss_sum[i], step_metrics.loss_sum, rtol=rtol
        )
    counted = int(metrics.images.sum())
    _require(counted == len(split.labels), f"{counted} of {len(split.labels)} images")
    check_same_tree(state, looped, rtol)


def check_same_tree(got: TrainState | Any, want: TrainState | Any, rtol: float) -> None:
    """Asserts that two trees agree within `rtol` of each leaf's largest value.

    Differences below the precision of the tree's largest value are ignored. The bias of
    an attention's keys, for example, has a gradient of 0 in exact arithmetic, so that
    its values are rounding errors only.
    """
    wanted = named_leaves(want)
    largest = {name: float(jnp.max(jnp.abs(leaf))) for name, leaf in wanted.items()}
    precision = float(jnp.finfo(jnp.float32).eps) * max(largest.values())
    for leaf, name in zip(jax.tree.leaves(got), wanted, strict=True):
        atol = rtol * largest[name] + (precision if rtol else 0)
        np.testing.assert_allclose(leaf, wanted[name], 0, atol, err_msg=name)


def check_model(
    network: Any,
    image_shape: tuple[int, int] = IMAGE_SHAPE,
    classes: int = CLASSES,
    model_args: Sequence[str] = (),
) -> None:
    """Runs every check above on a network.

    Args:
        network: a linen module, the class of a linen or NNX module, or a text as for
            `TrainConfig.model`.
        image_shape: height and width of its images.
        classes: number of its classes.
        model_args: as of `TrainConfig`, for a class.

    Raises:
        InputError: as `check_network`.
        AssertionError: a check fails.
    """
    shapes = Shapes(image_shape, classes)
    name = getattr(network, "__name__", str(network))
    if isinstance(network, str):
        config = TrainConfig(model=network, model_args=tuple(model_args), impl="plain")
        model = create_model(config, shapes)
    elif inspect.isclass(network):
        model = instantiate(network, model_args, shapes)
    else:
        model, name = network, type(network).__name__
    check_network(name, model, shapes)
    model = Rewritten(model, resolve_impl("auto"))  # type: ignore[assignment]
    check_logits(model, shapes)
    check_batch(model, shapes)
    check_step_learns(model, shapes=shapes)
    check_gradients(model, shapes)
    check_epoch_equals_steps(model, shapes=shapes)
