"""One batch: loss, gradient, update; sums and counts. Pure functions, not jitted."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError
from mnist_jax.models.networks import CLASSES, init_params


class TrainState(NamedTuple):
    """What a step changes: arrays only, so that runs of other seeds need no retrace."""

    params: Any
    opt_state: Any


class Metrics(NamedTuple):
    """Sums over images, so that batches of any size add up to exact means."""

    loss_sum: jax.Array
    correct: jax.Array
    images: jax.Array


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the softmax cross-entropy of each image `[B]`.

    Args:
        logits: `[B,10]`.
        labels: whole numbers `[B]`, or one-hot `[B,10]` with the same result.
    """
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, CLASSES, dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, labels)


def batch_metrics(
    logits: jax.Array, labels: jax.Array, weights: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Returns the sum of the losses, to differentiate, and the metrics of a batch.

    Args:
        logits: `[B,10]`.
        labels: `[B]` whole numbers or `[B,10]` one-hot.
        weights: `[B]`, 1 for an image and 0 for padding.
    """
    classes = labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)
    loss_sum = jnp.sum(cross_entropy(logits, labels) * weights)
    correct = jnp.sum((jnp.argmax(logits, axis=-1) == classes) * weights)
    return loss_sum, Metrics(loss_sum, correct, jnp.sum(weights))


def scale_by_keras_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Adam as Keras computes it: epsilon is added before the bias correction.

    The update is `sqrt(1-b2^t)/(1-b1^t) * m / (sqrt(v)+eps)`, where `optax.adam` has
    `m/(1-b1^t) / (sqrt(v/(1-b2^t))+eps)`; with raw pixels the two part within 30 steps.
    Source: keras/src/optimizers/adam.py (Keras 3.15).
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(
        grads: Any, state: optax.ScaleByAdamState, params: Any = None
    ) -> tuple[Any, optax.ScaleByAdamState]:
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: m + (1 - b1) * (g - m), state.mu, grads)
        nu = jax.tree.map(lambda v, g: v + (1 - b2) * (g * g - v), state.nu, grads)
        # In the gradients' precision, as in Keras: 1 - b2^t loses four digits at first.
        t = count.astype(jax.tree.leaves(grads)[0].dtype)
        rate = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        updates = jax.tree.map(lambda m, v: rate * m / (jnp.sqrt(v) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def create_schedule(config: TrainConfig, steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step, for a run of so many.

    Raises:
        InputError: the run is too long for a schedule, which counts in 32 bits.
    """
    peak = config.learning_rate
    if config.schedule == "constant":
        return optax.constant_schedule(peak)
    if steps >= 2**31:
        raise InputError(
            f"--epochs={config.epochs} with --batch_size={config.batch_size} makes "
            f"{steps} steps, and --schedule={config.schedule} counts to 2147483647; "
            "give fewer epochs or --schedule=constant"
        )
    # Both schedules divide by the length of their parts: each needs a step of its own.
    steps = max(steps, 3)
    warmup = min(max(round(config.warmup_fraction * steps), 1), steps - 2)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup, steps)
    # Half a step more, since optax cuts the product down to a whole number.
    fraction = (warmup + 0.5) / steps
    return optax.cosine_onecycle_schedule(steps, peak, pct_start=fraction)


def create_optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of a config for a run of so many steps."""
    parts = []
    if config.clip_norm is not None:
        parts.append(optax.clip_by_global_norm(config.clip_norm))
    if config.optimizer == "sgd":
        if config.momentum:
            parts.append(optax.trace(config.momentum, nesterov=config.nesterov))
    elif config.optimizer == "keras_adam":
        parts.append(scale_by_keras_adam())
    else:
        parts.append(optax.scale_by_adam())
    if config.optimizer == "adamw":
        parts.append(optax.add_decayed_weights(config.weight_decay))
    parts.append(optax.scale_by_learning_rate(create_schedule(config, steps)))
    tx = optax.chain(*parts)
    if not config.freeze:
        return tx

    def labels(params: Any) -> dict[str, str]:
        return {name: "no" if name in config.freeze else "yes" for name in params}

    return optax.partition({"yes": tx, "no": optax.set_to_zero()}, labels)


def init_state(
    model: nn.Module, tx: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """Returns fresh parameters and optimizer state."""
    params = init_params(model, key)
    return TrainState(params, tx.init(params))


def init_states(
    model: nn.Module, tx: optax.GradientTransformation, keys: jax.Array
) -> TrainState:
    """Returns a fresh state for each of the keys `[seeds]`, stacked."""
    return lax.map(partial(init_state, model, tx), keys)


def _sum_over_devices(tree: Any, axis_name: str) -> Any:
    """Sums each array of a tree over a mesh axis.

    As one array: XLA:CPU adds up the arrays of a tuple far slower, by 0.6 ms a step of
    the CNN. Written piece by piece, the largest first: XLA:CPU fuses the sums that make
    biases' gradients into `concatenate` and into the first write, which is a `pad`, and
    takes them anew for each element of all (an LSTM's step: 27 ms, not 3).
    """
    leaves, treedef = jax.tree.flatten(tree)
    flat = jnp.zeros(sum(leaf.size for leaf in leaves), jnp.result_type(*leaves))
    starts, free = {}, 0
    for i in sorted(range(len(leaves)), key=lambda i: -leaves[i].size):
        values = leaves[i].ravel().astype(flat.dtype)
        flat = lax.dynamic_update_slice(flat, values, (free,))
        starts[i], free = free, free + leaves[i].size
    flat = lax.psum(flat, axis_name)
    sums = [
        flat[starts[i] : starts[i] + leaf.size].reshape(leaf.shape).astype(leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, sums)


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    key: jax.Array,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    axis_name: str | None = None,
    parts: int = 1,
) -> tuple[TrainState, Metrics]:
    """Updates the state by one batch and returns the batch's metrics before it.

    Args:
        state: parameters and optimizer state.
        images: `[B,28,28] float32`.
        labels: `[B]` whole numbers, or `[B,10]` one-hot.
        weights: `[B]`, 1 for an image and 0 for padding.
        key: of this step's dropout.
        model: any module with `apply(variables, images, train=...) -> [B,10]`; where
            the batch is sharded or in parts also with `first=`, the place of its first
            image in the whole batch, since the key is the same for all of them.
        tx: optimizer.
        axis_name: mesh axis over which the batch is sharded, if it is.
        parts: of the batch to take one after the other, of equal size, adding up their
            gradients: the same update from smaller arrays.
    """
    place: dict[str, Any] = {}
    if axis_name is not None:
        place["first"] = lax.axis_index(axis_name) * len(images)

    def gradients(
        images: jax.Array, labels: jax.Array, weights: jax.Array, **place: Any
    ) -> tuple[Any, Metrics]:
        def loss_fn(params: Any) -> tuple[jax.Array, Metrics]:
            logits: Any = model.apply(
                {"params": params}, images, train=True, rngs={"dropout": key}, **place
            )
            return batch_metrics(logits, labels, weights)

        return jax.grad(loss_fn, has_aux=True)(state.params)

    if parts == 1:
        grads, metrics = gradients(images, labels, weights, **place)
    else:
        size = -(-len(images) // parts)
        padding, first = parts * size - len(images), place.get("first", 0)
        batch = [
            jnp.pad(array, [(0, padding), *[(0, 0)] * (array.ndim - 1)])
            for array in (images, labels, weights)
        ]

        def add(part: jax.Array, total: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
            start = part * size
            cut = [lax.dynamic_slice_in_dim(array, start, size) for array in batch]
            return jax.tree.map(jnp.add, total, gradients(*cut, first=first + start))

        zeros = (
            jax.tree.map(jnp.zeros_like, state.params),
            Metrics(*jnp.zeros(3, jnp.float32)),
        )
        grads, metrics = lax.fori_loop(0, parts, add, zeros)
    if axis_name is not None:
        grads, metrics = _sum_over_devices((grads, metrics), axis_name)
    grads = jax.tree.map(lambda grad: grad / metrics.images, grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state), metrics


def eval_step(
    params: Any,
    images: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    *,
    model: nn.Module,
) -> Metrics:
    """Returns the metrics of a batch without changing anything; arguments as above."""
    logits: Any = model.apply({"params": params}, images)
    return batch_metrics(logits, labels, weights)[1]
