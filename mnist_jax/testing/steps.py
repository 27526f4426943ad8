"""Checks of a step function: any `step(state, images, labels, mask, key)`.

It returns the new state and metrics that are sums over images, such as `train_step`
with its model and optimizer given. It may be jitted, and donate its state.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.data.pixels import Preprocess
from mnist_jax.data.types import CLASSES, IMAGE_SHAPE, MNIST, Shapes, Split
from mnist_jax.testing.trees import (
    LOOPS,
    assert_trees_close,
    draws_random_numbers,
    explained,
    named,
    no_compiling,
    other_constant_keys,
    require,
    require_known,
    require_new_keys,
    require_same_types,
)
from mnist_jax.training.checkpoints import leaf_names

Step = Callable[..., tuple[Any, Any]]
preprocess = Preprocess("scaled")


class Batch(NamedTuple):
    """The images of a step, with their labels and mask."""

    images: Any  # [B,H,W] float32
    labels: Any  # [B] int32
    mask: Any  # [B] float32, 1 for an image and 0 for padding


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


def make_batch(
    size: int = 16, image_shape: tuple[int, ...] = IMAGE_SHAPE, classes: int = CLASSES
) -> Batch:
    """Returns a batch of random images with learnable labels, without padding."""
    split = make_split(size, shapes=Shapes(image_shape, classes))
    images = preprocess(split.images)
    return Batch(images, jnp.asarray(split.labels), jnp.ones(size, jnp.float32))


@functools.lru_cache(maxsize=4)  # one compilation serves all checks of a step
def _jitted(step: Callable[..., Any]) -> Any:
    """Returns a step as it is if it is jitted, otherwise jitted."""
    if isinstance(step, jax.stages.Wrapped):
        return step
    return jax.jit(lambda *arguments: step(*arguments))


def _run(step: Step, state: Any, batch: Batch, key: Any = None) -> tuple[Any, Any]:
    """Calls a step with a copy of the state, which it may donate."""
    copy = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)
    return step(copy, *batch, jax.random.key(0) if key is None else key)


def _require_close(step: Step, state: Any, batch: Batch, got: Any, why: str) -> None:
    """Asserts that a call on the batch gives `got`, except for rounding.

    Adam's updates of a parameter whose exact gradient is 0 are rounding errors divided
    by their own size. So differences are compared with those that other roundings of
    the images make.
    """
    run, rng = _jitted(step), np.random.default_rng(0)
    want, noise = _run(run, state, batch), dict.fromkeys(named(got), 0.0)
    for _ in range(3):
        shape = np.shape(batch.images)
        factors = jnp.asarray(1 + 1e-6 * rng.standard_normal(shape), jnp.float32)
        near = named(_run(run, state, batch._replace(images=batch.images * factors)))
        for name, leaf in named(want).items():
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                changes = np.nan_to_num(jnp.abs(near[name] - leaf), posinf=0)
                noise[name] = max(noise[name], np.max(changes, initial=0))
    for name, leaf in named(want).items():
        pair = {name: named(got)[name]}, {name: leaf}
        with explained(why):
            assert_trees_close(*pair, 1e-4, 10 * noise[name], equal_nan=True)


def check_types(step: Step, state: Any, batch: Batch) -> None:
    """Asserts that the new state has the structure and types of the old one."""
    run = functools.partial(_run, step, batch=batch)
    given, (new, _) = jax.eval_shape(lambda old: old, state), jax.eval_shape(run, state)
    require_same_types(new, given, "the step changes the types of its state")


def check_pure(step: Step, state: Any, batch: Batch) -> None:
    """Asserts that calls without jit give the same bits, and change no argument."""
    state = jax.tree.map(lambda leaf: leaf, state)  # not the caller's containers
    before = named(state)
    with jax.disable_jit():
        first, second = (step(state, *batch, jax.random.key(0)) for _ in range(2))
    kept = named(state)
    same = kept.keys() == before.keys() and all(kept[n] is before[n] for n in before)
    require(same, "the step changes the state that it is given, in place")
    with explained("a second call gives another result"):
        assert_trees_close(second, first, rtol=0, equal_nan=True)


def check_jit(step: Step, state: Any, batch: Batch) -> None:
    """Asserts that the step computes the same with and without jit."""
    with jax.disable_jit():
        got = _run(step, state, batch)
    _require_close(step, state, batch, got, "without jit the step computes otherwise")


def check_compiles_once(step: Step, state: Any, batch: Batch) -> None:
    """Asserts that further calls of the step, with new states, compile nothing.

    Loops of a step that is not jitted are compiled in each call, as always in JAX.
    """
    keys = [jax.random.key(seed) for seed in range(4)]
    state, _ = _run(step, state, batch)
    but = () if isinstance(step, jax.stages.Wrapped) else LOOPS
    with explained("build jitted functions once, outside the step"), no_compiling(but):
        for key in keys:
            state, _ = step(state, *batch, key)


def check_random(step: Step, state: Any, batch: Batch) -> None:
    """Asserts that random numbers come from the key, and no key is used twice."""
    key = jax.random.key(0)
    first = _run(_jitted(step), state, batch, key)
    with other_constant_keys():
        other = _run(_jitted(step), state, batch, key)
    with explained(
        "the step draws random numbers that do not depend on its key; derive all keys "
        "from it"
    ):
        assert_trees_close(other, first, rtol=0, equal_nan=True)
    require_new_keys(step, state, *batch, key)


def check_padding(step: Step, state: Any, batch: Batch) -> None:
    """Asserts that a batch gives the same with padding of random images and labels.

    With statistics in the state the padding has the images of the batch, which leaves
    those of the batch as they are: batch normalization does not know the mask.
    """
    images, labels, mask = map(jnp.asarray, batch)
    more = jnp.asarray(np.random.default_rng(0).random(images.shape), images.dtype)
    if any("stats" in name or "mean" in name for name in leaf_names(state)):
        more = images
    padded = Batch(
        jnp.concatenate([images, more]),
        jnp.concatenate([labels, (labels + 1) % (labels.max() + 1)]),
        jnp.concatenate([mask, jnp.zeros_like(mask)]),
    )
    got = _run(_jitted(step), state, padded)
    why = (
        "images whose mask is 0 change the result; multiply what depends on them by "
        "the mask, and divide by its sum, not by len(images)"
    )
    _require_close(step, state, batch, got, why)


def check_order(step: Step, state: Any, batch: Batch) -> None:
    """Asserts that the order of the images does not matter.

    A step that draws random numbers passes: dropout depends on an image's index.
    """
    if not draws_random_numbers(step, state, *batch, jax.random.key(0)):
        reverse = Batch(*(array[::-1] for array in batch))
        got = _run(_jitted(step), state, reverse)
        why = "the result depends on the order of the images in the batch"
        _require_close(step, state, batch, got, why)


def check_sums(step: Step, state: Any, batch: Batch) -> None:
    """Asserts that the metrics of two halves add up to those of the batch."""
    run, half = _jitted(step), np.arange(len(batch.mask)) < len(batch.mask) // 2
    first, second, whole = (
        _run(run, state, batch._replace(mask=batch.mask * chosen))[1]
        for chosen in (half, ~half, half | ~half)
    )
    added = jax.tree.map(jnp.add, first, second)
    with explained(
        "the metrics of two halves do not add up to those of the batch; return sums "
        "over images and their number, not means"
    ):
        assert_trees_close(added, whole, 1e-4, equal_nan=True)


def check_learns(step: Step, state: Any, batch: Batch, steps: int = 30) -> None:
    """Asserts that steps on one batch lower the loss and change every parameter.

    The loss is the first of the metrics whose name has "loss" in it. The parameters are
    the state's `params`, or all of it.
    """
    run, losses, old = _jitted(step), [], _params(state)
    for seed in range(steps):
        state, metrics = _run(run, state, batch, jax.random.key(seed))
        names = [name for name in named(metrics) if "loss" in name]
        require(names, f"none of the metrics {[*named(metrics)]} has loss in its name")
        losses.append(float(named(metrics)[names[0]]))
    require(np.isfinite(losses).all(), f"losses are not finite: {losses[:5]}")
    lower = np.mean(losses[steps // 2 :]) < losses[0]
    change = f"from {losses[0]:.4g} to {losses[-1]:.4g}"
    require(lower, f"{steps} steps on one batch did not lower the loss: {change}")
    for name, leaf in _params(state).items():
        moved = np.any(np.asarray(leaf) != np.asarray(old[name]))
        require(moved, f"{name} did not change in {steps} steps; has it a gradient?")


def _params(state: Any) -> dict[str, Any]:
    if isinstance(state, Mapping):
        return named(state.get("params", state))
    return named(getattr(state, "params", state))


STEP_CHECKS: Mapping[str, Callable[[Step, Any, Batch], None]] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        *(check_types, check_pure, check_jit, check_compiles_once, check_random),
        *(check_padding, check_order, check_sums, check_learns),
    )
}


def check_step(
    step: Step,
    state: Any,
    batch: Batch | None = None,
    checks: Sequence[str] = tuple(STEP_CHECKS),
) -> None:
    """Checks a step function.

    Args:
        step: `step(state, images, labels, mask, key) -> (state, metrics)`; the metrics
            are sums over the images.
        state: initial state, a tree of arrays.
        batch: to call it on; default: `make_batch()`.
        checks: some of `STEP_CHECKS`, in this order.

    Raises:
        AssertionError: a check fails.
    """
    require_known(checks, STEP_CHECKS)
    for name in checks:
        STEP_CHECKS[name](step, state, batch or make_batch())
