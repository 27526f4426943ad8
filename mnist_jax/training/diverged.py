"""Ends a run whose loss is not finite, and names the layer where that began."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mnist_jax.config import TrainConfig
from mnist_jax.data.augment import Augmentation
from mnist_jax.data.batches import epoch_indices
from mnist_jax.errors import DivergedError
from mnist_jax.models.networks import apply_model
from mnist_jax.models.rewrite import without_rewriting
from mnist_jax.training.checkpoints import named_leaves
from mnist_jax.training.epochs import AUGMENT, gather
from mnist_jax.training.prepare import Experiment
from mnist_jax.training.steps import batch_gradients


def check_finite(
    losses: Any,
    config: TrainConfig,
    seed: int,
    epochs: int,
    find: Callable[[int | None], tuple[str, int] | None] | None = None,
) -> None:
    """Raises DivergedError if a loss is NaN or infinite, after `epochs` epochs.

    `losses` has the loss of each step of an epoch `[steps]`, or is one evaluation loss.
    `find` is `find_cause` but for its last argument.
    """
    losses = np.asarray(losses)
    bad = np.flatnonzero(~np.isfinite(losses))
    if not bad.size:
        return
    step, where, cause = None, "in the evaluation", ""
    if losses.ndim:
        step, where = int(bad[0]), f"at step {bad[0] + 1} of {losses.size}"
    if find and (found := find(step)):
        name, step = found
        cause = f"; {name} is the first that is not finite, at step {step + 1}"
    advice = f"try a --learning_rate below {config.learning_rate:g} or --clip_norm=1"
    if step == epochs == 0:
        advice = (
            "no step had changed the parameters yet, so the network, the parameters it "
            "starts from or --pixels are the cause, not the learning rate"
        )
    raise DivergedError(
        f"{config.name}, seed {seed}: the loss is {losses.flat[bad[0]]} {where} "
        f"of epoch {min(epochs + 1, config.epochs)}{cause}; {advice}"
    )


def find_cause(
    experiment: Experiment,
    seeds: Sequence[int],
    begin: Callable[[], Any],
    number: int,
    step: int | None,
) -> tuple[str, int] | None:
    """Replays an epoch and returns what was not finite first, and at which step.

    Args:
        experiment: of the seeds, which are trained together.
        seeds: of the runs.
        begin: returns the states before that epoch, the run keys and the histories.
        number: index of the seed whose loss is not finite.
        step: of that loss; None: after the epoch.
    """
    programs, dataset = experiment.programs, experiment.dataset
    states, run_keys, histories = begin()
    epoch, size = len(histories[0]), experiment.config.batch_size
    orders = [epoch_indices(s, epoch, len(dataset.train.labels), size) for s in seeds]
    indices, rows = programs.shard(np.stack(orders)), orders[number]
    keys, start = programs.epoch_keys(run_keys, epoch), 0
    step = len(rows) if step is None else step
    # Without an infinite input or output, the step before had an infinite gradient.
    for stop in range(max(step - 1, 0), min(step + 1, len(rows))):
        states, metrics = programs.run_steps(
            states, experiment.train, indices, keys, start, stop
        )
        jax.block_until_ready(metrics)
        state = jax.tree.map(lambda leaf: leaf[number], jax.device_get(states))
        key = jax.random.fold_in(jax.random.fold_in(run_keys[number], epoch), stop)
        images, labels, mask = gather(dataset.train, rows[stop])
        augment = Augmentation(experiment.config.augment)
        images = augment(images, jax.random.fold_in(key, AUGMENT))
        batch = experiment.preprocess(images), labels, mask, key
        if name := _first_not_finite(state.variables, *batch, experiment.model):
            return name, stop
        start = stop
    return None


def _first_not_finite(variables: Any, images: Any, *batch: Any) -> str | None:
    """Returns the first input, output or gradient of a step that is not finite.

    Arguments are as for `batch_gradients`. Inputs and outputs come in the order of the
    calls, gradients in the reverse order.
    """
    found: list[str] = []
    called: list[str] = []

    def record(call: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        name = "/".join(context.module.path)
        called.append(name)
        if not _is_finite((arguments, keywords)):
            found.append(f"the input of {name or 'the network'}")
        outputs = call(*arguments, **keywords)
        if not _is_finite(outputs):
            found.append(f"the output of {name or 'the network'}")
        return outputs

    _, _, key, model = batch
    model = without_rewriting(model)  # to see every layer
    with nn.intercept_methods(record):
        apply_model(model, variables, images, train=True, dropout_key=key)
    if not found:
        leaves = named_leaves(batch_gradients(variables, images, *batch)[0])
        order = {name: i for i, name in enumerate(called)}
        bad = [name for name, leaf in leaves.items() if not _is_finite(leaf)]
        bad.sort(key=lambda name: -order.get(name.rpartition("/")[0], 0))
        found = [f"the gradient of {name}" for name in bad]
    return found[0] if found else None


def _is_finite(tree: Any) -> bool:
    """Returns whether the numbers of a tree are finite, where they are known."""
    return all(
        bool(jnp.all(jnp.isfinite(leaf)))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(getattr(leaf, "dtype", int), jnp.inexact)
        and not isinstance(leaf, jax.core.Tracer)
    )
