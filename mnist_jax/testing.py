"""Checks that a network trains correctly, for this project's tests and for your own.

Each check takes any linen module with `apply(variables, images, train=...)` that
returns logits `[B,classes]`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

from mnist_jax.data.batches import epoch_indices
from mnist_jax.data.pixels import Preprocess
from mnist_jax.data.types import CLASSES, IMAGE_SHAPE, MNIST, Shapes, Split
from mnist_jax.models.custom import check_network
from mnist_jax.models.networks import apply_model, split_params
from mnist_jax.training.epochs import gather, jit, make_programs
from mnist_jax.training.mesh import make_mesh, replicate, seed_keys, shard_seeds
from mnist_jax.training.steps import TrainState, train_step

preprocess = Preprocess("scaled")


def make_split(size: int = 64, seed: int = 0, shapes: Shapes = MNIST) -> Split:
    """Returns random images with learnable labels."""
    rng = np.random.default_rng(seed)
    height, width = shapes.image
    labels = rng.integers(0, shapes.classes, size).astype(np.int32)
    images = rng.integers(0, 100, (size, height, width)).astype(np.uint8)
    # Bright pixels mark the label: every second row, or less where there are many.
    step = min(2 * width, height * width // shapes.classes) or 1
    marked = step * labels[:, None] + np.arange(max(1, step // 2))
    images.reshape(size, -1)[np.arange(size)[:, None], marked % (height * width)] += 150
    return Split(images, labels)


def leaf_names(tree: Any) -> list[str]:
    """Returns the path of every leaf, in the order of `jax.tree.leaves`."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]


def _init_state(
    model: nn.Module, tx: optax.GradientTransformation, shapes: Shapes
) -> TrainState:
    """Returns the initial state for seed 0."""
    programs = make_programs(model, tx, preprocess, make_mesh(1), shapes.image)
    return jax.tree.map(lambda leaf: leaf[0], programs.init(seed_keys([0])))


def _require(condition: bool, message: str) -> None:
    """Raises AssertionError, also under `python -O`, which skips `assert`."""
    if not condition:
        raise AssertionError(message)


def check_logits(model: nn.Module, shapes: Shapes = MNIST) -> None:
    """Asserts that the outputs are logits, each image's computed from it alone.

    In training they may depend on the image's index in the batch, as dropout masks do,
    and with batch statistics (`nn.BatchNorm`) on the other images.
    """
    key, split = jax.random.key(0), make_split(24, shapes=shapes)

    def fill(leaf: jax.Array) -> jax.Array:
        # Behind a kernel that starts at 0, all images would give the same logits.
        noise = 0.05 * jax.random.normal(key, leaf.shape, leaf.dtype)
        return noise if jnp.all(leaf == 0) else leaf

    params = jax.tree.map(fill, _init_state(model, optax.identity(), shapes).params)

    @partial(jit, static_argnames="train")
    def run(batches: jax.Array, train: bool) -> Any:
        options: Any = dict(train=train, dropout_key=key if train else None)
        return lax.map(lambda x: apply_model(model, params, x, **options)[0], batches)

    indices = np.arange(24).reshape(3, 8)
    # The second half of the first batch, with other images and at another index.
    batches = preprocess(split.images[indices[[[0, 1], [2, 1], [1, 2]]].reshape(3, 16)])
    for train, phase in ((False, "evaluation"), (True, "training")):
        first, others, shifted = np.asarray(run(batches, train=train), np.float32)
        _require(bool(np.all(np.isfinite(first))), f"logits in {phase} are not finite")
        _require(
            first.min() < 0 or np.abs(first.sum(axis=1) - 1).max() > 0.01,
            "the outputs are probabilities, which add up to 1; return logits, without "
            "a softmax",
        )
        tolerance = 1e-3 * np.abs(first).max()
        mixed = train and bool(split_params(model, params, shapes.image)[1])
        _require(
            mixed or np.abs(others[8:] - first[8:]).max() <= tolerance,
            f"in {phase} the logits of an image depend on the other images of the "
            "batch; compute them from each image alone (nn.Conv and pooling need a "
            "channel axis, as in images[..., None])",
        )
        _require(
            train or np.abs(shifted[:8] - first[8:]).max() <= tolerance,
            "in evaluation the logits of an image depend on its index in the batch; "
            "turn dropout and other noise off unless train is True",
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
    lowered = losses[-1] < losses[0]
    _require(lowered, f"{steps} steps did not lower the loss: {losses}")
    before, after = jax.tree.leaves(initial.params), jax.tree.leaves(state.params)
    for name, old, new in zip(leaf_names(initial.params), before, after, strict=True):
        _require(bool(np.all(np.isfinite(new))), f"{name} is not finite")
        _require(
            bool(np.any(old != new)),
            f"{name} did not change in {steps} steps: the logits do not depend on it, "
            "or only through operations that have no gradient",
        )


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
    got_leaves, want_leaves = jax.tree.leaves(got), jax.tree.leaves(want)
    largest = [float(jnp.max(jnp.abs(leaf))) for leaf in want_leaves]
    precision = float(jnp.finfo(jnp.float32).eps) * max(largest)
    for name, a, b, size in zip(
        leaf_names(want), got_leaves, want_leaves, largest, strict=True
    ):
        np.testing.assert_allclose(
            a, b, rtol=0, atol=rtol * size + (precision if rtol else 0), err_msg=name
        )


def check_model(
    model: nn.Module, image_shape: tuple[int, int] = IMAGE_SHAPE, classes: int = CLASSES
) -> None:
    """Runs every check above on a network.

    Args:
        model: any linen module.
        image_shape: height and width of its images.
        classes: number of its classes.

    Raises:
        InputError: as `check_network`.
        AssertionError: a check fails.
    """
    shapes = Shapes(image_shape, classes)
    check_network(type(model).__name__, model, shapes)
    check_logits(model, shapes)
    check_step_learns(model, shapes=shapes)
    check_epoch_equals_steps(model, shapes=shapes)
