"""Ends a run whose loss is not finite, and names the layer where that began."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mnist_jax.config import TrainConfig
from mnist_jax.data.augment import Augmentation
from mnist_jax.errors import InputError
from mnist_jax.models.networks import apply_model
from mnist_jax.models.rewrite import without_rewriting
from mnist_jax.training.checkpoints import named_leaves
from mnist_jax.training.epochs import AUGMENT, gather
from mnist_jax.training.prepare import Experiment
from mnist_jax.training.steps import TrainState, batch_gradients


def check_finite(
    losses: Any,
    config: TrainConfig,
    seeds: Sequence[int],
    epoch: int,
    find: Callable[[int, int | None], tuple[str, int] | None] | None = None,
) -> None:
    """Raises InputError if a loss is NaN or infinite.

    `losses` are those of the steps of an epoch `[seeds,steps]`, or of an evaluation
    `[seeds]`. `find` is `find_cause` but for its first arguments.
    """
    losses = np.asarray(losses)
    bad = np.argwhere(~np.isfinite(losses))
    if not bad.size:
        return
    number, step, where, cause = int(bad[0, 0]), None, "in the evaluation", ""
    if losses.ndim == 2:
        step = int(bad[0, 1])
        where = f"at step {step + 1} of {losses.shape[1]}"
    if find and (found := find(number, step)):
        name, step = found
        cause = f"; {name} is the first that is not finite, at step {step + 1}"
    advice = f"try a --learning_rate below {config.learning_rate:g} or --clip_norm=1"
    if step == epoch == 0:
        advice = (
            "no step had changed the parameters yet, so the network, the parameters it "
            "starts from or --pixels are the cause, not the learning rate"
        )
    raise InputError(
        f"{config.name}, seed {seeds[number]}: the loss is {losses[*bad[0]]} {where} "
        f"of epoch {epoch + 1}{cause}; {advice}"
    )


def find_cause(
    experiment: Experiment,
    begin: Callable[[], tuple[TrainState, Any, Any]],
    indices: jax.Array,
    keys: jax.Array,
    number: int,
    step: int | None,
) -> tuple[str, int] | None:
    """Replays an epoch and returns what was not finite first, and at which step.

    `begin` returns the states before that epoch first; the others are as for
    `Programs.run_steps`. The loss that is not finite was that of the seed with that
    index at that step, or after the epoch.
    """
    start, steps, rows = 0, indices.shape[1], np.asarray(indices[number])
    step = steps if step is None else step
    states, _, _ = begin()
    # Without an infinite input or output, the step before had an infinite gradient.
    for stop in range(max(step - 1, 0), min(step + 1, steps)):
        states, metrics = experiment.programs.run_steps(
            states, experiment.train, indices, keys, start, stop
        )
        jax.block_until_ready(metrics)
        start = stop
        one = jax.tree.map(lambda leaf: leaf[number], (states, keys))
        state, key = jax.device_put(one, jax.devices()[0])
        key = jax.random.fold_in(key, stop)
        images, labels, mask = gather(experiment.dataset.train, rows[stop])
        augment = Augmentation(experiment.config.augment)
        images = augment(images, jax.random.fold_in(key, AUGMENT))
        batch = experiment.preprocess(images), labels, mask, key
        if name := _first_not_finite(state.variables, *batch, experiment.model):
            return name, stop
    return None


def _first_not_finite(variables: Any, images: Any, *batch: Any) -> str | None:
    """Returns the first input, output or gradient of a step that is not finite.

    Arguments are as for `batch_gradients`. Inputs and outputs come in the order of the
    calls, gradients in the reverse order.
    """
    found: list[str] = []
    called: list[str] = []

    def check(what: str, tree: Any) -> None:
        for leaf in jax.tree.leaves(tree):
            inexact = jnp.issubdtype(getattr(leaf, "dtype", int), jnp.inexact)
            known = not isinstance(leaf, jax.core.Tracer)
            if inexact and known and not np.all(jnp.isfinite(leaf)):
                found.append(what)

    def record(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        name = "/".join(context.module.path)
        called.append(name)
        check(f"the input of {name or 'the network'}", (arguments, keywords))
        outputs = call(*arguments, **keywords)
        check(f"the output of {name or 'the network'}", outputs)
        return outputs

    _, _, key, model = batch
    model = without_rewriting(model)  # to see every layer
    with nn.intercept_methods(record):
        apply_model(model, variables, images, train=True, dropout_key=key)
    if not found:
        order = {name: i for i, name in enumerate(called)}
        leaves = named_leaves(batch_gradients(variables, images, *batch)[0])
        for name in sorted(leaves, key=lambda n: -order.get(n.rpartition("/")[0], 0)):
            check(f"the gradient of {name}", leaves[name])
    return found[0] if found else None
