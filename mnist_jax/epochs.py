"""One pass over a split on the device mesh: the only home of scan, jit and sharding."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Wrapped

from mnist_jax.data import Split
from mnist_jax.steps import Metrics, TrainState, eval_step, train_step

AXIS = "batch"
# One call over 10,000 images at once is several times slower on a CPU than chunks that
# stay in its caches.
EVAL_CHUNK = 500

Scale = Callable[[jax.Array], jax.Array]


def make_batch_mesh(devices: int | None = None) -> Mesh:
    """Returns a mesh of the first so many devices (default all) along the batch."""
    chosen = jax.devices()[:devices]
    return jax.make_mesh(
        (len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen
    )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies arrays to every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def shard_indices(indices: np.ndarray, mesh: Mesh) -> jax.Array:
    """Spreads the columns of `[steps, B]` over the mesh, padded with -1 to fit it."""
    missing = -indices.shape[1] % mesh.size
    padded = np.pad(indices, ((0, 0), (0, missing)), constant_values=-1)
    return jax.device_put(padded, NamedSharding(mesh, P(None, AXIS)))


def eval_indices(size: int, mesh: Mesh) -> jax.Array:
    """Returns all places in order, in chunks spread over the mesh: `[n, chunk]`."""
    chunk = min(EVAL_CHUNK * mesh.size, size)
    places = np.arange(size + -size % chunk, dtype=np.int32).reshape(-1, chunk)
    return shard_indices(np.where(places < size, places, -1), mesh)


def gather(split: Split, places: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns images `[B,28,28] uint8`, labels and weights at `[B]` places.

    A place of -1 is padding: its weight is 0, so that it counts nowhere.
    """
    images = jnp.take(split.images, places, axis=0, mode="clip")
    labels = jnp.take(split.labels, places, axis=0, mode="clip")
    return images, labels, (places >= 0).astype(jnp.float32)


def make_train_epoch(
    model: nn.Module, tx: optax.GradientTransformation, scale: Scale, mesh: Mesh
) -> Wrapped:
    """Returns the jitted `train_epoch(state, split, indices, key)`.

    Args:
        model: network.
        tx: optimizer.
        scale: pixels uint8 to float32.
        mesh: devices that share each batch.

    Returns:
        A function of the replicated state (donated: bind its result to the same name),
        the replicated split, `shard_indices(epoch_indices(...))` and the epoch's key;
        it returns the new state and the metrics of each step `[steps]`.
    """

    def train_epoch(
        state: TrainState, split: Split, indices: jax.Array, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        def body(
            state: TrainState, step_and_places: tuple[jax.Array, jax.Array]
        ) -> tuple[TrainState, Metrics]:
            step, places = step_and_places
            images, labels, weights = gather(split, places)
            step_key = jax.random.fold_in(key, step)
            return train_step(
                state,
                scale(images),
                labels,
                weights,
                step_key,
                model=model,
                tx=tx,
                axis_name=AXIS,
            )

        return lax.scan(body, state, (jnp.arange(len(indices)), indices))

    sharded = jax.shard_map(
        train_epoch,
        mesh=mesh,
        in_specs=(P(), P(), P(None, AXIS), P()),
        out_specs=P(),
        # With the check on, a gradient by replicated parameters is summed over the mesh
        # before `train_step` sums it.
        check_vma=False,
    )
    return jax.jit(sharded, donate_argnums=0)


def make_evaluate(model: nn.Module, scale: Scale, mesh: Mesh) -> Wrapped:
    """Returns the jitted `evaluate(params, split, indices) -> Metrics` of all images.

    Its arguments are replicated parameters, a replicated split and `eval_indices`.
    """

    def evaluate(params: Any, split: Split, indices: jax.Array) -> Metrics:
        def body(_: None, places: jax.Array) -> tuple[None, Metrics]:
            images, labels, weights = gather(split, places)
            return None, eval_step(params, scale(images), labels, weights, model=model)

        _, metrics = lax.scan(body, None, indices)
        return lax.psum(jax.tree.map(partial(jnp.sum, axis=0), metrics), AXIS)

    sharded = jax.shard_map(
        evaluate,
        mesh=mesh,
        in_specs=(P(), P(), P(None, AXIS)),
        out_specs=P(),
        check_vma=False,
    )
    return jax.jit(sharded)
