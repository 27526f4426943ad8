"""Devices: how many pay, and how arrays are laid out over them."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError
from mnist_jax.models.flops import training_flops
from mnist_jax.models.networks import count_params, create_model

SEEDS, BATCH = "seeds", "batch"  # the axes of the mesh
# One call over 10,000 images at once is several times slower on a CPU than chunks that
# stay in its caches.
EVAL_CHUNK = 200
# What a CPU device must have to do in a step for each parameter, in operations, before
# it pays to have it: every device also updates all parameters, and they exchange every
# gradient. Measured on two cores (docs/performance.md).
_OPERATIONS_PER_PARAMETER = 350


def choose_mesh(config: TrainConfig, seeds: int = 1) -> Mesh:
    """Returns the devices for so many seeds of a config: all, on a CPU those that pay.

    The seeds are spread first, as far as they can be dealt out evenly, since they have
    nothing to exchange; what devices are left share each batch. The cores of devices
    left out still work, as threads of the others.

    Raises:
        InputError: the config asks for more CPU devices than JAX was started with.
    """
    devices = jax.device_count()
    if config.cpu_devices > devices:
        raise InputError(
            f"--cpu_devices must be at most the {devices} JAX was started with; got "
            f"{config.cpu_devices}; set jax_num_cpu_devices first or give fewer"
        )
    devices = config.cpu_devices or devices
    seed_devices = math.gcd(seeds, devices)
    batch_devices = devices // seed_devices
    if jax.default_backend() == "cpu" and not config.cpu_devices:
        operations = training_flops(config) * config.batch_size
        parameters = count_params(create_model(config))
        worth = int(operations / parameters / _OPERATIONS_PER_PARAMETER)
        batch_devices = max(1, min(batch_devices, worth, config.batch_size))
    return make_mesh(batch_devices, seed_devices)


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


def shard_seeds(tree: Any, mesh: Mesh) -> Any:
    """Spreads the first axis of arrays `[seeds,...]` over the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P(SEEDS)))


def shard_indices(indices: np.ndarray, mesh: Mesh) -> jax.Array:
    """Spreads indices `[seeds,steps,B]` over the mesh, padded with -1 to fit it."""
    missing = -indices.shape[2] % mesh.shape[BATCH]
    padding = ((0, 0), (0, 0), (0, missing))
    padded = np.pad(indices, padding, constant_values=-1)
    return jax.device_put(padded, NamedSharding(mesh, P(SEEDS, None, BATCH)))


@functools.lru_cache(maxsize=64)  # a loop over single steps asks for the same ones
def step_bounds(start: int, stop: int, mesh: Mesh) -> jax.Array:
    """Returns the chunk of an epoch to run: the steps `start` to `stop`, exclusive."""
    return replicate(np.array([start, stop], np.int32), mesh)


def eval_indices(indices: range, mesh: Mesh, rows: int = 0) -> jax.Array:
    """Returns indices in order, in chunks spread over the mesh: `[n,chunk]`.

    There are at least so many rows; beyond the indices they hold -1.
    """
    chunk = EVAL_CHUNK * mesh.shape[BATCH]
    rows = max(rows, -(-len(indices) // chunk))
    padded = np.full(rows * chunk, -1, np.int32)
    padded[: len(indices)] = indices
    sharding = NamedSharding(mesh, P(None, BATCH))
    return jax.device_put(padded.reshape(rows, chunk), sharding)


def seed_keys(seeds: Sequence[int]) -> jax.Array:
    """Returns `jax.random.key(seed)` for each seed `0..2**32-1`, `[seeds]`.

    Made from the key's two words: the function itself would be compiled, for 0.03 s.
    """
    words = np.array([[0, seed] for seed in seeds], np.uint32)
    return jax.random.wrap_key_data(jax.device_put(words), impl="threefry2x32")
