"""Device meshes: how many devices to use, and how arrays are sharded over them."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Shapes
from mnist_jax.errors import InputError
from mnist_jax.models.flops import training_flops
from mnist_jax.models.networks import count_params, create_model
from mnist_jax.training import distributed

SEEDS, BATCH = "seeds", "batch"  # the axes of the mesh
# On a CPU, one call over 10,000 images is several times slower than chunks that fit in
# its caches.
EVAL_CHUNK = 200
# Minimum operations per step and parameter for a CPU device to be worth using: every
# device also updates all parameters, and they exchange every gradient. Measured on two
# cores (docs/performance.md).
_OPERATIONS_PER_PARAMETER = 350


def choose_mesh(config: TrainConfig, seeds: int, shapes: Shapes) -> Mesh:
    """Returns a mesh of all devices, or on a CPU of as many as speed up training.

    Seeds are sharded first, as far as they divide evenly, since they exchange nothing;
    the remaining devices share each batch. The cores of unused devices still work, as
    threads of the others. In a job of several processes, equally many devices of each
    share each batch, so that every process holds every seed's parameters.
    """
    devices, processes = jax.local_device_count(), jax.process_count()
    if config.cpu_devices > devices:
        raise InputError(
            f"--cpu_devices must be at most the {devices} JAX was started with; got "
            f"{config.cpu_devices}; call mnist_jax.setup first or use fewer"
        )
    devices = config.cpu_devices or devices
    seed_devices = math.gcd(seeds, devices) if processes == 1 else 1
    batch_devices = devices // seed_devices
    if jax.default_backend() == "cpu" and not config.cpu_devices:
        operations = training_flops(config, shapes) * config.batch_size
        parameters = count_params(create_model(config, shapes), shapes.image)
        useful = int(operations / parameters / _OPERATIONS_PER_PARAMETER) // processes
        batch_devices = max(1, min(batch_devices, useful, config.batch_size))
    return make_mesh(batch_devices * processes, seed_devices)


def make_mesh(batch_devices: int, seed_devices: int = 1) -> Mesh:
    """Returns a mesh `[seed_devices,batch_devices]`, equally many of each process."""
    shape = (seed_devices, batch_devices)
    share = math.prod(shape) // jax.process_count()
    by_process = [jax.local_devices(i)[:share] for i in range(jax.process_count())]
    devices = list(itertools.chain(*by_process))
    return jax.make_mesh(shape, (SEEDS, BATCH), (AxisType.Auto,) * 2, devices=devices)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies arrays to every device of the mesh."""
    return distributed.put(tree, NamedSharding(mesh, P()))


def shard_seeds(tree: Any, mesh: Mesh) -> Any:
    """Shards the first axis of arrays `[seeds,...]` over the mesh."""
    return distributed.put(tree, NamedSharding(mesh, P(SEEDS)))


def shard_indices(indices: np.ndarray, mesh: Mesh) -> jax.Array:
    """Shards indices `[seeds,steps,B]` over the mesh, padding with -1 if needed."""
    missing = -indices.shape[2] % mesh.shape[BATCH]
    padding = ((0, 0), (0, 0), (0, missing))
    padded = np.pad(indices, padding, constant_values=-1)
    return distributed.put(padded, NamedSharding(mesh, P(SEEDS, None, BATCH)))


@functools.lru_cache(maxsize=4096)  # by loops over single steps, 26 us each
def step_bounds(start: int, stop: int, mesh: Mesh) -> jax.Array:
    """Returns the bounds of a chunk of an epoch: steps `start` to `stop`, exclusive."""
    return replicate(np.array([start, stop], np.int32), mesh)


def eval_indices(indices: range, mesh: Mesh, rows: int = 0) -> jax.Array:
    """Returns indices in order, in chunks sharded over the mesh: `[n,chunk]`.

    There are at least `rows` chunks, padded with -1.
    """
    chunk = EVAL_CHUNK * mesh.shape[BATCH]
    rows = max(rows, -(-len(indices) // chunk))
    padded = np.full(rows * chunk, -1, np.int32)
    padded[: len(indices)] = indices
    sharding = NamedSharding(mesh, P(None, BATCH))
    return distributed.put(padded.reshape(rows, chunk), sharding)


def seed_keys(seeds: Sequence[int]) -> jax.Array:
    """Returns the threefry key of each seed `0..2**32-1`, `[seeds]`.

    It is `jax.random.key(seed)` with JAX's default settings, built from the key's two
    words: `jax.random.key` would take 0.03 s to compile.
    """
    words = np.array([[0, seed] for seed in seeds], np.uint32)
    return jax.random.wrap_key_data(jax.device_put(words), impl="threefry2x32")
