"""One batch: loss, gradient, update; sums and counts. Pure functions, not jitted."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

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
        labels: integers `[B]`, or one-hot `[B,10]` with the same result.
    """
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, CLASSES, dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, labels)


def batch_metrics(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Returns the sum of the losses, to differentiate, and the metrics of a batch.

    Args:
        logits: `[B,10]`.
        labels: `[B]` integers or `[B,10]` one-hot.
        mask: `[B]`, 1 for an image and 0 for padding.
    """
    classes = labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)
    loss_sum = jnp.sum(cross_entropy(logits, labels) * mask)
    correct = jnp.sum((jnp.argmax(logits, axis=-1) == classes) * mask)
    return loss_sum, Metrics(loss_sum, correct, jnp.sum(mask))


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
    the CNN. Written leaf by leaf, the largest first: XLA:CPU fuses the sums that make
    biases' gradients into `concatenate` and into the first write, which is a `pad`, and
    recomputes them for each element of all (an LSTM's step: 27 ms, not 3).
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


def batch_gradients(
    params: Any,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    model: nn.Module,
    batch_offset: jax.Array | int | None = None,
) -> tuple[Any, Metrics]:
    """Returns the gradient of the sum of a batch's losses, and its metrics.

    Arguments are those of `train_step`; `batch_offset` is the index of the first image
    in the whole batch, or None if the model is not to be given one.
    """
    offset: dict[str, Any] = (
        {} if batch_offset is None else {"batch_offset": batch_offset}
    )

    def loss_fn(params: Any) -> tuple[jax.Array, Metrics]:
        logits: Any = model.apply(
            {"params": params}, images, train=True, rngs={"dropout": key}, **offset
        )
        return batch_metrics(logits, labels, mask)

    return jax.grad(loss_fn, has_aux=True)(params)


def accumulate_gradients(
    params: Any,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    model: nn.Module,
    batch_offset: jax.Array | int,
    microbatches: int,
) -> tuple[Any, Metrics]:
    """Returns what `batch_gradients` does, from microbatches taken one by one.

    Their arrays are smaller, so that they stay in a device's caches.
    """
    size = -(-len(images) // microbatches)
    padding = microbatches * size - len(images)
    batch = [
        jnp.pad(array, [(0, padding), *[(0, 0)] * (array.ndim - 1)])
        for array in (images, labels, mask)
    ]

    def add(number: jax.Array, total: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
        start = number * size
        cut = [lax.dynamic_slice_in_dim(array, start, size) for array in batch]
        gradients = batch_gradients(
            params, cut[0], cut[1], cut[2], key, model, batch_offset + start
        )
        return jax.tree.map(jnp.add, total, gradients)

    zeros = jax.tree.map(jnp.zeros_like, params), Metrics(*jnp.zeros(3, jnp.float32))
    return lax.fori_loop(0, microbatches, add, zeros)


def train_step(
    state: TrainState,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    axis_name: str | None = None,
    microbatches: int = 1,
) -> tuple[TrainState, Metrics]:
    """Updates the state by one batch and returns the batch's metrics before it.

    Args:
        state: parameters and optimizer state.
        images: `[B,28,28] float32`.
        labels: `[B]` integers, or `[B,10]` one-hot.
        mask: `[B]`, 1 for an image and 0 for padding.
        key: of this step's dropout.
        model: any module with `apply(variables, images, train=...) -> [B,10]`; where
            the batch is sharded or in microbatches also with `batch_offset=`, the index
            of its first image in the whole batch, since the key is the same for all.
        tx: optimizer.
        axis_name: mesh axis over which the batch is sharded, if it is.
        microbatches: how many to cut the batch into and take one after the other,
            adding up their gradients: the same update from smaller arrays.
    """
    batch, offset = (images, labels, mask, key, model), None
    if axis_name is not None:
        offset = lax.axis_index(axis_name) * len(images)
    if microbatches == 1:
        grads, metrics = batch_gradients(state.params, *batch, offset)
    else:
        grads, metrics = accumulate_gradients(
            state.params, *batch, 0 if offset is None else offset, microbatches
        )
    if axis_name is not None:
        grads, metrics = _sum_over_devices((grads, metrics), axis_name)
    grads = jax.tree.map(lambda grad: grad / metrics.images, grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), opt_state), metrics


def eval_step(
    params: Any,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    *,
    model: nn.Module,
) -> Metrics:
    """Returns the metrics of a batch without changing anything; arguments as above."""
    logits: Any = model.apply({"params": params}, images)
    return batch_metrics(logits, labels, mask)[1]
