"""One pass over a split on the device mesh: the home of loop, jit and sharding.

Several seeds of one network can be trained together: states, keys and orders of images
then have a first axis of seeds, which is there for a single one too.
"""

import math
from collections.abc import Callable
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

from mnist_jax.data.datasets import Split
from mnist_jax.training.steps import Metrics, TrainState, eval_step, train_step

SEEDS, BATCH = "seeds", "batch"  # the axes of the mesh
# One call over 10,000 images at once is several times slower on a CPU than chunks that
# stay in its caches.
EVAL_CHUNK = 200
# So it is with training where large arrays are kept for the gradient: a device takes
# its share of a batch in parts of at most so many images (docs/performance.md).
TRAIN_CHUNK = 64

Scale = Callable[[jax.Array], jax.Array]


def make_mesh(batch_devices: int | None = None, seed_devices: int = 1) -> Mesh:
    """Returns a mesh that shares the seeds and, for each of them, the batch.

    Args:
        batch_devices: devices that share a batch; default as many as there are.
        seed_devices: groups of such devices, each of which trains seeds of its own.
    """
    devices = jax.devices()
    shape = (seed_devices, batch_devices or len(devices) // seed_devices)
    return jax.make_mesh(
        shape,
        (SEEDS, BATCH),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices[: math.prod(shape)],
    )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies arrays to every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def spread_seeds(tree: Any, mesh: Mesh) -> Any:
    """Spreads the first axis of arrays `[seeds,...]` over the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P(SEEDS)))


def shard_indices(indices: np.ndarray, mesh: Mesh) -> jax.Array:
    """Spreads places `[seeds,steps,B]` over the mesh, padded with -1 to fit it."""
    missing = -indices.shape[2] % mesh.shape[BATCH]
    padding = ((0, 0), (0, 0), (0, missing))
    padded = np.pad(indices, padding, constant_values=-1)
    return jax.device_put(padded, NamedSharding(mesh, P(SEEDS, None, BATCH)))


def step_bounds(first: int, last: int, mesh: Mesh) -> jax.Array:
    """Returns the part of an epoch to run: the steps from `first` on before `last`."""
    return replicate(np.array([first, last], np.int32), mesh)


def eval_indices(places: range, mesh: Mesh, rows: int = 0) -> jax.Array:
    """Returns places in order, in chunks spread over the mesh: `[n,chunk]`.

    Args:
        places: of the images.
        mesh: devices.
        rows: chunks at least; those beyond the places hold -1.
    """
    chunk = EVAL_CHUNK * mesh.shape[BATCH]
    rows = max(rows, -(-len(places) // chunk))
    padded = np.full(rows * chunk, -1, np.int32)
    padded[: len(places)] = places
    sharding = NamedSharding(mesh, P(None, BATCH))
    return jax.device_put(padded.reshape(rows, chunk), sharding)


def gather(split: Split, places: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns images `[B,28,28] uint8`, labels and weights at `[B]` places.

    A place of -1 is padding: its weight is 0, so that it counts nowhere.
    """
    images = jnp.take(split.images, places, axis=0, mode="clip")
    labels = jnp.take(split.labels, places, axis=0, mode="clip")
    return images, labels, (places >= 0).astype(jnp.float32)


def _for_each_seed(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Lets a function of one seed's arrays take those of several, `[seeds,...]`."""
    if mesh.devices.flat[0].platform != "cpu":
        return jax.vmap(function)  # small networks leave most of an accelerator idle
    # On a CPU one seed after the other is faster (docs/performance.md).
    return lambda *stacked: lax.map(lambda arrays: function(*arrays), stacked)


def _sum_over_batch(mesh: Mesh) -> str | None:
    """Returns the axis to sum gradients over; None if one device has the batch.

    A sum over one device would still copy every gradient: 12 % of an MLP's step.
    """
    return BATCH if mesh.shape[BATCH] > 1 else None


def count_parts(model: nn.Module, images: int) -> int:
    """Returns in how many parts a device takes so many images of a batch."""
    if getattr(model, "kernels", "plain") != "fast":  # an MLP, or not on a CPU
        return 1
    return -(-images // TRAIN_CHUNK)


def make_train_epoch(
    model: nn.Module, tx: optax.GradientTransformation, scale: Scale, mesh: Mesh
) -> Wrapped:
    """Returns the jitted `train_epoch(states, split, indices, keys, bounds)` of seeds.

    An epoch may be run in parts of any size, to tell how far it is: the parts together
    are the same steps with the same keys as the whole. Wait for each part's metrics
    before the next where a CPU is several devices: they wait for each other at every
    step, and with two calls under way XLA:CPU's threads can all end up waiting.

    Args:
        model: network.
        tx: optimizer.
        scale: pixels uint8 to float32.
        mesh: devices; each of its rows trains its share of the seeds.

    Returns:
        A function of the states `[seeds,...]` (`spread_seeds`; donated: bind the result
        to the same name), the replicated split, `shard_indices` of each seed's
        `epoch_indices`, the seeds' keys `[seeds]` and `step_bounds`; it returns the new
        states and the metrics of each step `[seeds,steps]`, 0 for those not run.
    """
    axis_name = _sum_over_batch(mesh)

    def train_epochs(
        states: TrainState,
        split: Split,
        indices: jax.Array,
        keys: jax.Array,
        bounds: jax.Array,
    ) -> tuple[TrainState, Metrics]:
        parts = count_parts(model, indices.shape[2])  # a device's share of a batch

        def train_epoch(
            state: TrainState, indices: jax.Array, key: jax.Array
        ) -> tuple[TrainState, Metrics]:
            def body(
                step: jax.Array, carry: tuple[TrainState, Metrics]
            ) -> tuple[TrainState, Metrics]:
                state, history = carry
                places = lax.dynamic_index_in_dim(indices, step, keepdims=False)
                images, labels, weights = gather(split, places)
                state, metrics = train_step(
                    state,
                    scale(images),
                    labels,
                    weights,
                    jax.random.fold_in(key, step),
                    model=model,
                    tx=tx,
                    axis_name=axis_name,
                    parts=parts,
                )
                return state, Metrics(
                    *(
                        lax.dynamic_update_index_in_dim(values, value, step, 0)
                        for values, value in zip(history, metrics, strict=True)
                    )
                )

            shape = (len(indices),)
            zeros = Metrics(*(jnp.zeros(shape, jnp.float32) for _ in Metrics._fields))
            return lax.fori_loop(bounds[0], bounds[1], body, (state, zeros))

        return _for_each_seed(train_epoch, mesh)(states, indices, keys)

    sharded = jax.shard_map(
        train_epochs,
        mesh=mesh,
        in_specs=(P(SEEDS), P(), P(SEEDS, None, BATCH), P(SEEDS), P()),
        out_specs=P(SEEDS),
        # With the check on, a gradient by replicated parameters is summed over the mesh
        # before `train_step` sums it.
        check_vma=False,
    )
    return jax.jit(sharded, donate_argnums=0)


def make_evaluate(model: nn.Module, scale: Scale, mesh: Mesh) -> Wrapped:
    """Returns the jitted `evaluate(params, split, indices) -> Metrics [seeds]`.

    Its arguments are the parameters `[seeds,...]`, a replicated split and
    `eval_indices`, whose last rows cost nothing where they hold only -1: one program
    serves parts of any size.
    """
    axis_name = _sum_over_batch(mesh)

    def evaluate_all(params: Any, split: Split, indices: jax.Array) -> Metrics:
        rows = jnp.sum(jnp.any(indices >= 0, axis=1))

        def evaluate(params: Any) -> Metrics:
            def body(row: jax.Array, total: Metrics) -> Metrics:
                images, labels, weights = gather(split, indices[row])
                metrics = eval_step(params, scale(images), labels, weights, model=model)
                return jax.tree.map(jnp.add, total, metrics)

            zero = Metrics(*(jnp.zeros((), jnp.float32) for _ in Metrics._fields))
            total = lax.fori_loop(0, rows, body, zero)
            return total if axis_name is None else lax.psum(total, axis_name)

        return _for_each_seed(evaluate, mesh)(params)

    sharded = jax.shard_map(
        evaluate_all,
        mesh=mesh,
        in_specs=(P(SEEDS), P(), P(None, BATCH)),
        out_specs=P(SEEDS),
        check_vma=False,
    )
    return jax.jit(sharded)
