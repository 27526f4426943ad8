"""Compiles the training epochs for a TPU, on a machine that has none.

python -m benchmarks.check_tpu

It needs libtpu, which `make check-tpu` installs beside the environment. The epochs of
the three networks are compiled ahead of time for the four chips of a TPU v5e (2x2),
each batch sharded over them.
"""

import dataclasses
import importlib.util
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from absl import flags
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mnist_jax.cli.main import run_program
from mnist_jax.config import MODELS, TrainConfig
from mnist_jax.data.pixels import Preprocess
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Split
from mnist_jax.errors import InputError
from mnist_jax.models.flops import training_flops
from mnist_jax.models.networks import LSTM, create_model
from mnist_jax.reporting.tables import markdown_table
from mnist_jax.training.epochs import make_programs
from mnist_jax.training.mesh import BATCH, SEEDS
from mnist_jax.training.optimizers import create_optimizer

FLAGS = flags.FLAGS
TOPOLOGY = "v5e:2x2"
IMAGES = 60_000


def tpu_mesh() -> Mesh:
    """Returns a mesh of the topology's chips, which share each batch.

    Raises:
        InputError: libtpu is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "libtpu is not installed; run `make check-tpu`, which installs it beside "
            "the environment"
        )
    topology = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY)
    devices: np.ndarray = np.array(topology.devices)[None]
    return Mesh(devices, (SEEDS, BATCH), axis_types=(AxisType.Auto, AxisType.Auto))


def compile_epoch(config: TrainConfig, mesh: Mesh) -> dict[str, Any]:
    """Compiles the training epoch of one seed; returns its row of the table."""

    def arrays(tree: Any, *spec: str | None) -> Any:
        sharding = NamedSharding(mesh, P(*spec))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
        )

    steps = -(-IMAGES // config.batch_size)
    network = create_model(dataclasses.replace(config, impl="plain"), MNIST)
    if isinstance(network, LSTM):  # as `create_model` does on a TPU
        network = network.clone(unroll=IMAGE_SHAPE[0])
    tx = create_optimizer(config, steps * config.epochs)
    pixels = Preprocess(config.pixels)
    programs = make_programs(network, tx, pixels, mesh, IMAGE_SHAPE)
    keys = jax.random.split(jax.random.key(0), 1)
    shape = jax.ShapeDtypeStruct
    images = arrays(shape((IMAGES, *IMAGE_SHAPE), jnp.uint8))
    labels = arrays(shape((IMAGES,), jnp.int32))
    start = time.perf_counter()
    compiled = programs.train.lower(
        arrays(jax.eval_shape(programs.init, keys), SEEDS),
        Split(images, labels),
        arrays(shape((1, steps, config.batch_size), jnp.int32), SEEDS, None, BATCH),
        arrays(keys, SEEDS),
        arrays(shape((2,), jnp.int32)),
    ).compile()
    seconds = time.perf_counter() - start
    memory, flops = compiled.memory_analysis(), training_flops(config, MNIST)
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return {
        "model": config.model,
        "precision": config.precision,
        "compile s": f"{seconds:.0f}",
        "MB per chip": f"{used / 1e6:,.0f}",
        "of it temporary": f"{memory.temp_size_in_bytes / 1e6:,.1f}",
        "GFLOPs per step": f"{flops * config.batch_size / 1e9:.2f}",
    }


def main() -> None:
    """Compiles the epochs and prints a table."""
    mesh, rows = tpu_mesh(), []
    for model in MODELS:
        for precision in FLAGS.precisions:
            print(f"compiling {model}, {precision} ...", flush=True)
            config = TrainConfig(model=model, precision=precision)
            rows.append(compile_epoch(config, mesh))
    print(f"\ncompiled for a TPU {TOPOLOGY}, batch 128 on four chips\n")
    print(markdown_table(pd.DataFrame(rows)))


def run() -> None:
    """Entry point."""
    # Neither setting is used where JAX runs on a TPU: nothing runs here.
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1")
    jax.config.update("jax_platforms", "cpu")
    flags.DEFINE_list("precisions", ["float32"], "precisions, comma-separated")
    run_program(main)


if __name__ == "__main__":
    run()
