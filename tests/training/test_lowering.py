"""What only GPUs and TPUs use, on a machine that has neither."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mnist_jax.config import MODELS, ConvStage, TrainConfig
from mnist_jax.data.batches import epoch_indices
from mnist_jax.data.pixels import Preprocess
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Split
from mnist_jax.models.networks import CNN, LSTM, MLP, create_model
from mnist_jax.testing import assert_trees_close
from mnist_jax.testing.steps import make_split, preprocess
from mnist_jax.training import epochs
from mnist_jax.training.epochs import make_programs
from mnist_jax.training.mesh import BATCH as BATCH_AXIS
from mnist_jax.training.mesh import SEEDS as SEEDS_AXIS
from mnist_jax.training.mesh import make_mesh
from mnist_jax.training.optimizers import create_optimizer

PLATFORMS = {"gpu": ("cuda", "rocm"), "tpu": ("tpu",)}  # by JAX's name of a backend
SEEDS, STEPS, BATCH = 2, 3, 32
shape = jax.ShapeDtypeStruct
SPLIT = Split(shape((60_000, 28, 28), jnp.uint8), shape((60_000,), jnp.int32))


def make(model, precision, mesh):
    """Returns the programs of a built-in network at full size."""
    config = TrainConfig(model=model, precision=precision)
    network, tx = create_model(config, MNIST), create_optimizer(config, STEPS)
    return make_programs(network, tx, Preprocess("scaled"), mesh, IMAGE_SHAPE)


@pytest.mark.parametrize("backend", PLATFORMS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", MODELS)
def test_programs_lower_for_accelerators(model, precision, backend, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    # On the mesh of a CPU, seeds would be trained one after the other.
    monkeypatch.setattr(epochs, "_is_on_cpu", lambda mesh: False)
    programs = make(model, precision, make_mesh(1))
    keys = jax.random.split(jax.random.key(0), SEEDS)
    states = jax.eval_shape(programs.init, keys)
    orders, bounds = shape((SEEDS, STEPS, BATCH), jnp.int32), shape((2,), jnp.int32)
    rows = shape((50, 200), jnp.int32)
    for program, arguments in (
        (programs.init, (keys,)),
        (programs.train, (states, SPLIT, orders, keys, bounds)),
        (programs.evaluate, (states.variables, SPLIT, rows)),
    ):
        exported = export.export(program, platforms=PLATFORMS[backend])(*arguments)
        assert exported.platforms == PLATFORMS[backend]
        text = exported.mlir_module()
        if program is programs.train:
            assert ("bf16" in text) == (precision == "bfloat16")


@pytest.mark.parametrize("model", MODELS)
def test_seeds_computed_at_once_equal_each_alone(model, monkeypatch):
    """As on accelerators: seeds by `vmap`, and the LSTM's loop unrolled."""
    networks = {
        "mlp": MLP((8,), 10, (0.5,)),
        "lstm": LSTM((8,), "tanh", (), 10, unroll=True),
        "cnn": CNN((ConvStage(4, pool=2, bn=True),), (8,), 10),
    }
    plain = {**networks, "lstm": LSTM((8,), "tanh", (), 10)}
    split, results = make_split(64), []
    orders = np.stack([epoch_indices(seed, 0, 64, 24) for seed in range(SEEDS)])
    for on_cpu, network in ((True, plain[model]), (False, networks[model])):
        monkeypatch.setattr(epochs, "_is_on_cpu", lambda mesh, found=on_cpu: found)
        arguments = network, optax.sgd(0.1), preprocess, make_mesh(1), IMAGE_SHAPE
        programs = make_programs(*arguments)
        states, keys = programs.init_run(range(SEEDS))
        rows = programs.shard(orders), programs.epoch_keys(keys, 0)
        results.append(programs.run_steps(states, split, *rows))
    assert_trees_close(*results, 1e-4)


@pytest.mark.accelerator
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", MODELS)
def test_epochs_compile_for_four_chips_of_a_tpu(model, precision, monkeypatch):
    """Needs libtpu, but no TPU; see docs/accelerators.md."""
    pytest.importorskip("libtpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    auto = AxisType.Auto, AxisType.Auto
    chips = np.array(topology.devices)[None]
    mesh = Mesh(chips, (SEEDS_AXIS, BATCH_AXIS), axis_types=auto)

    def arrays(tree, *spec):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(mesh, P(*spec))
            ),
            tree,
        )

    programs = make(model, precision, mesh)
    keys = jax.random.split(jax.random.key(0), 1)
    orders = shape((1, STEPS, 128), jnp.int32)
    compiled = programs.train.lower(
        arrays(jax.eval_shape(programs.init, keys), SEEDS_AXIS),
        arrays(SPLIT),
        arrays(orders, SEEDS_AXIS, None, BATCH_AXIS),
        arrays(keys, SEEDS_AXIS),
        arrays(shape((2,), jnp.int32)),
    ).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 2**30
