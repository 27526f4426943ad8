"""Compares the gradients of a network with the slopes of its loss."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mnist_jax.data.types import Shapes
from mnist_jax.testing.steps import make_split, preprocess
from mnist_jax.testing.trees import require
from mnist_jax.training.checkpoints import leaf_names
from mnist_jax.training.epochs import jit
from mnist_jax.training.steps import batch_gradients


def check_slopes(model: nn.Module, variables: Any, shapes: Shapes) -> None:
    """Asserts that gradients are the slopes of the loss, as a custom one may not be.

    The slope in a random direction of each array comes from central differences, in
    float64 if the network can compute in it. One that computes in bfloat16 passes: its
    loss has steps in place of slopes.
    """
    for float64 in (True, False):
        with jax.enable_x64(float64):
            try:
                return _check_slopes(model, variables, shapes)
            except TypeError:  # such as a loop whose state is always float32
                if not float64:
                    raise


def _check_slopes(model: nn.Module, variables: Any, shapes: Shapes) -> None:
    """Does the same with JAX's largest float type."""
    split, rng = make_split(8, shapes=shapes), np.random.default_rng(0)
    start = jax.device_get(variables), preprocess(split.images)
    variables, images = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), start)
    batch = images, jnp.asarray(split.labels), jnp.ones(8, float), jax.random.key(0)

    def differentiate(variables: Any) -> Any:
        return batch_gradients(variables, *batch, model)

    # At level 0, convolutions in float64 are loops that take twenty times as long.
    options = {"xla_backend_optimization_level": "1"}
    run = jit(differentiate, options).lower(variables).compile()
    types = set(re.findall(r"\b(bf16|f16|f32|f64)\[", str(run.as_text())))
    if types & {"bf16", "f16"}:
        return
    # Within a larger step a ReLU may change sides; a smaller one drowns in rounding.
    step, tolerance = (1e-8, 0.01) if types == {"f64"} else (1e-4, 0.2)
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
    for name, (given, slope) in zip(leaf_names(params), found, strict=True):
        require(
            given == 0  # of `stop_gradient`, or of what "learns" finds
            or abs(given - slope) <= tolerance * (max(abs(given), abs(slope)) + floor),
            f"the gradient of {name} is wrong: in a random direction it gives the loss "
            f"a slope of {given:.6g}, but central differences {slope:.6g}; compare "
            "each custom_vjp with the gradient of the same code without it (a "
            "straight-through estimator is meant to differ: leave this check out)",
        )
