"""Loss, gradients, update and metrics of one batch, as pure functions (not jitted)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import lax

from mnist_jax.models.custom import call_options
from mnist_jax.models.networks import apply_model, init_model


class TrainState(NamedTuple):
    """The state that a step updates: arrays only, so that new seeds need no retrace."""

    params: Any
    stats: Any  # Flax's other collections, such as `batch_stats`; often none
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is called with, as of `init_model`."""
        return {"params": self.params, **self.stats}


class Metrics(NamedTuple):
    """Sums over images, so that batches of any size combine to exact means."""

    loss_sum: jax.Array
    correct: jax.Array
    images: jax.Array

    @classmethod
    def zeros(cls, *shape: int) -> "Metrics":
        """Returns the sums over no images, in arrays of a shape."""
        return cls(*3 * [jnp.zeros(shape, jnp.float32)])


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the softmax cross-entropy of each image `[B]`.

    From logits `[B,classes]` and labels `[B]`, or their probabilities `[B,classes]`.
    """
    if labels.ndim == 1:
        labels = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, labels)


def batch_metrics(
    logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> tuple[jax.Array, Metrics]:
    """Returns the summed loss, to differentiate, and the metrics of a batch.

    The loss is computed in float32 at least; `mask [B]` is 1 for an image and 0 for
    padding.
    """
    logits = _at_least_float32(logits)
    classes = labels if labels.ndim == 1 else jnp.argmax(labels, axis=-1)
    loss_sum = jnp.sum(cross_entropy(logits, labels) * mask)
    correct = jnp.sum((jnp.argmax(logits, axis=-1) == classes) * mask)
    # Parameters in float64 give such a loss, but the epoch's metrics are as the mask.
    return loss_sum, Metrics(loss_sum.astype(mask.dtype), correct, jnp.sum(mask))


def init_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    key: jax.Array,
    image_shape: tuple[int, ...],
) -> TrainState:
    """Returns the initial variables and optimizer state."""
    variables = init_model(model, key, image_shape)
    params = variables.pop("params")
    return TrainState(params, variables, tx.init(_at_least_float32(params)))


def _at_least_float32(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), tree
    )


def _sum_over_devices(tree: Any, axis_name: str) -> Any:
    """Sums each array of a tree over a mesh axis.

    The arrays are packed into one: XLA:CPU sums a tuple of arrays far more slowly, by
    0.6 ms per step of the CNN. They are written leaf by leaf, the largest first, since
    XLA:CPU fuses the sums that compute bias gradients into a `concatenate` or the first
    write (a `pad`), and recomputes them for every element (27 ms per LSTM step, not 3).
    """
    leaves, treedef = jax.tree.flatten(tree)
    flat = jnp.zeros(sum(leaf.size for leaf in leaves), jnp.result_type(*leaves))
    starts, end = {}, 0
    for i in sorted(range(len(leaves)), key=lambda i: -leaves[i].size):
        values = leaves[i].ravel().astype(flat.dtype)
        flat = lax.dynamic_update_slice(flat, values, (end,))
        starts[i], end = end, end + leaves[i].size
    flat = lax.psum(flat, axis_name)
    sums = [
        flat[starts[i] : starts[i] + leaf.size].reshape(leaf.shape).astype(leaf.dtype)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, sums)


def batch_gradients(
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    model: nn.Module,
    batch_offset: jax.Array | int | None = None,
) -> tuple[Any, Metrics]:
    """Returns the gradients of a batch's summed loss, and its metrics.

    Collections besides `params` have their updated values times the number of images
    instead: summed over microbatches and devices and divided by all images, like the
    gradients, they are means over images. Arguments are as for `train_step`;
    `batch_offset` is None to call the model without it.
    """
    if batch_offset is not None and "batch_offset" not in call_options(
        model, True, batch_offset
    ):
        key = jax.random.fold_in(key, batch_offset)  # other masks on each device

    def loss_fn(params: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
        logits, stats = apply_model(
            model,
            {**variables, "params": params},
            images,
            train=True,
            batch_offset=batch_offset,
            dropout_key=key,
        )
        loss_sum, metrics = batch_metrics(logits, labels, mask)
        return loss_sum, (metrics, stats)

    grads, (metrics, stats) = jax.grad(loss_fn, has_aux=True)(variables["params"])
    stats = jax.tree.map(lambda leaf: leaf * metrics.images, stats)
    return {"params": grads, **stats}, metrics


def accumulate_gradients(
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    model: nn.Module,
    batch_offset: jax.Array | int,
    microbatches: int,
) -> tuple[Any, Metrics]:
    """Returns `batch_gradients`, accumulated over microbatches that fit in caches."""
    size = -(-len(images) // microbatches)
    padding = microbatches * size - len(images)
    # Padded with images of the batch, since batch statistics do not know the mask.
    images, labels = (jnp.concatenate([a, a[:padding]]) for a in (images, labels))
    batch = images, labels, jnp.pad(mask, (0, padding))

    def add(i: jax.Array, total: tuple[Any, Metrics]) -> tuple[Any, Metrics]:
        start = i * size
        x, y, m = (lax.dynamic_slice_in_dim(array, start, size) for array in batch)
        gradients = batch_gradients(
            variables, x, y, m, key, model, batch_offset + start
        )
        return jax.tree.map(jnp.add, total, gradients)

    zeros = jax.tree.map(jnp.zeros_like, variables), Metrics.zeros()
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
    """Updates the state on one batch; returns it and the metrics before the update.

    Args:
        state: variables and optimizer state.
        images: `[B,H,W] float32`.
        labels: `[B]` integers, or `[B,classes]` probabilities.
        mask: `[B]`, 1 for an image and 0 for padding.
        key: dropout key of this step.
        model: any module with `apply(variables, images, train=...) -> [B,classes]`,
            and `batch_offset=`, the index of the first image in the whole batch, if the
            batch is sharded or split: all shares have one key.
        tx: optimizer.
        axis_name: mesh axis over which the batch is sharded, if any.
        microbatches: number of microbatches whose gradients are accumulated.
    """
    batch, offset = (images, labels, mask, key, model), None
    if axis_name is not None:
        offset = lax.axis_index(axis_name) * len(images)
    if microbatches == 1:
        grads, metrics = batch_gradients(state.variables, *batch, offset)
    else:
        grads, metrics = accumulate_gradients(
            state.variables, *batch, 0 if offset is None else offset, microbatches
        )
    if axis_name is not None:
        grads, metrics = _sum_over_devices((grads, metrics), axis_name)
    # Multiplied, not divided: XLA fuses that into the update, with no pass of its own.
    # In float32 at least, as the optimizer's state; parameters keep their type.
    scale = 1 / metrics.images
    means = jax.tree.map(lambda total: total * scale, grads)
    grads = means.pop("params")
    updates, opt_state = tx.update(
        grads, state.opt_state, _at_least_float32(state.params)
    )
    params = optax.apply_updates(state.params, updates)
    stats = jax.tree.map(lambda new, old: new.astype(old.dtype), means, state.stats)
    return TrainState(params, stats, opt_state), metrics


def eval_step(
    variables: Any,
    images: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    *,
    model: nn.Module,
) -> Metrics:
    """Returns the metrics of a batch; arguments are as for `train_step`."""
    logits, _ = apply_model(model, variables, images, train=False)
    return batch_metrics(logits, labels, mask)[1]
