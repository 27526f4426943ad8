"""Checks that a network trains correctly, for this project's tests and for your own.

Each check takes any linen module with `apply(variables, images, train=...) -> [B,10]`.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from mnist_jax.data.batches import epoch_indices
from mnist_jax.data.pixels import Preprocess
from mnist_jax.data.types import Split
from mnist_jax.models.custom import check_network
from mnist_jax.training.epochs import gather, make_programs
from mnist_jax.training.mesh import make_mesh, replicate, seed_keys, shard_seeds
from mnist_jax.training.steps import TrainState, train_step

preprocess = Preprocess("scaled")


def make_split(size: int = 64, seed: int = 0) -> Split:
    """Returns random images with learnable labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, size).astype(np.int32)
    images = rng.integers(0, 100, (size, 28, 28)).astype(np.uint8)
    images[np.arange(size), 2 * labels, :] += 150  # a bright row marks the label
    return Split(images, labels)


def leaf_names(tree: Any) -> list[str]:
    """Returns the path of every leaf, in the order of `jax.tree.leaves`."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]


def _init_state(model: nn.Module, tx: optax.GradientTransformation) -> TrainState:
    """Returns the initial state for seed 0."""
    programs = make_programs(model, tx, preprocess, make_mesh(1))
    return jax.tree.map(lambda leaf: leaf[0], programs.init(seed_keys([0])))


def check_step_learns(model: nn.Module, steps: int = 12) -> None:
    """Asserts that training lowers the loss, changes every leaf and stays finite."""
    tx, split = optax.adam(3e-3), make_split()
    step = jax.jit(partial(train_step, model=model, tx=tx))
    state = initial = _init_state(model, tx)
    images, labels, mask = gather(split, jnp.arange(len(split.labels)))
    losses = []
    for i in range(steps):
        key = jax.random.key(i)
        state, metrics = step(state, preprocess(images), labels, mask, key)
        losses.append(float(metrics.loss_sum / metrics.images))
    assert np.all(np.isfinite(losses)), f"losses are not finite: {losses}"
    assert losses[-1] < losses[0], f"{steps} steps did not lower the loss: {losses}"
    before, after = jax.tree.leaves(initial.params), jax.tree.leaves(state.params)
    for name, old, new in zip(leaf_names(initial.params), before, after, strict=True):
        assert np.all(np.isfinite(new)), f"{name} is not finite"
        assert np.any(old != new), f"{name} did not change"


def check_epoch_equals_steps(
    model: nn.Module, devices: int = 1, batch_size: int = 24, rtol: float = 1e-4
) -> None:
    """Asserts that a compiled epoch gives the same result as a Python loop of steps.

    By default the last batch is smaller than the others. With several devices the
    network must accept `batch_offset=`, see `train_step`.
    """
    tx, split = optax.sgd(0.1), make_split(64)
    indices = epoch_indices(0, 0, len(split.labels), batch_size)
    programs = make_programs(model, tx, preprocess, make_mesh(devices))
    key, looped = jax.random.key(7), _init_state(model, tx)
    states, keys = jax.tree.map(lambda leaf: leaf[None], (looped, key))
    states, metrics = programs.run_steps(
        shard_seeds(states, programs.mesh),
        replicate(split, programs.mesh),
        programs.shard(indices[None]),
        shard_seeds(keys, programs.mesh),
    )
    state, metrics = jax.tree.map(lambda leaf: leaf[0], (states, metrics))
    step = jax.jit(partial(train_step, model=model, tx=tx))
    for i, row in enumerate(indices):
        images, labels, mask = gather(split, jnp.asarray(row))
        step_key = jax.random.fold_in(key, i)
        looped, step_metrics = step(looped, preprocess(images), labels, mask, step_key)
        np.testing.assert_allclose(
            metrics.loss_sum[i], step_metrics.loss_sum, rtol=rtol
        )
    assert float(metrics.images.sum()) == len(split.labels)
    check_same_tree(state, looped, rtol)


def check_same_tree(got: TrainState | Any, want: TrainState | Any, rtol: float) -> None:
    """Asserts that two trees agree within `rtol` of each leaf's largest value."""
    got_leaves, want_leaves = jax.tree.leaves(got), jax.tree.leaves(want)
    for name, a, b in zip(leaf_names(want), got_leaves, want_leaves, strict=True):
        largest = float(jnp.max(jnp.abs(b))) + 1e-12
        np.testing.assert_allclose(
            np.asarray(a) / largest, np.asarray(b) / largest, atol=rtol, err_msg=name
        )


def check_model(model: nn.Module) -> None:
    """Runs every check above on a network.

    Raises:
        InputError: as `check_network`.
        AssertionError: a check fails.
    """
    check_network(type(model).__name__, model)
    check_step_learns(model)
    check_epoch_equals_steps(model)
