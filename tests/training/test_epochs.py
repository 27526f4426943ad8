"""The compiled epoch: equal to a loop, one trace, donated, no hidden transfers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.compilation import users_options

from mnist_jax.config import ConvStage, TrainConfig
from mnist_jax.data.batches import epoch_indices
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Dataset, Split
from mnist_jax.errors import InputError
from mnist_jax.models.networks import CNN, LSTM, MLP
from mnist_jax.models.rewrite import Rewritten
from mnist_jax.testing import assert_trees_close
from mnist_jax.testing.steps import make_split, preprocess
from mnist_jax.training.epochs import make_programs
from mnist_jax.training.mesh import (
    choose_mesh,
    eval_indices,
    make_mesh,
    replicate,
    seed_keys,
    shard_indices,
    shard_seeds,
    step_bounds,
)
from mnist_jax.training.steps import batch_metrics

STAGES = (ConvStage(8, pool=2), ConvStage(32))  # direct, then Winograd
MODELS = {
    "mlp": MLP((16,), 10),
    "lstm": LSTM((8,), "tanh", (), 10, (0.5,), impl="cpu"),
    "cnn": Rewritten(CNN(STAGES, (16,), 10, (0.5,))),
}


def make_inputs(model, tx, split, mesh, seed=0, epoch=0, batch_size=16):
    """Returns the arguments of a training epoch of one seed."""
    states = make_programs(model, tx, preprocess, mesh, IMAGE_SHAPE).init(
        seed_keys([seed])
    )
    indices = epoch_indices(seed, epoch, len(split.labels), batch_size)
    return (
        shard_seeds(states, mesh),
        replicate(split, mesh),
        shard_indices(indices[None], mesh),
        shard_seeds(jax.random.key(epoch)[None], mesh),
        step_bounds(0, len(indices), mesh),
    )


class CountTraces(MLP):
    """An MLP that records its traces."""

    traces = []

    def __call__(self, images, train=False, batch_offset=0):
        self.traces.append(images.shape)
        return super().__call__(images, train, batch_offset)


def test_a_sharded_epoch_is_that_of_one_device():
    """With batches that eight devices cannot share evenly, and a smaller last one."""
    model, tx, results = MLP((16,), 10, dropout=(0.5,)), optax.sgd(0.1), []
    for devices in (1, 8):
        mesh = make_mesh(devices)
        arguments = make_inputs(model, tx, make_split(), mesh, batch_size=23)
        programs = make_programs(model, tx, preprocess, mesh, IMAGE_SHAPE)
        results.append(programs.train(*arguments))
    assert_trees_close(*results, 1e-4)


def test_one_trace_serves_all_batches_epochs_and_seeds():
    model, tx, mesh = CountTraces((4,), 10), optax.adam(1e-3), make_mesh(2)
    split = make_split(50)
    train_epoch = make_programs(model, tx, preprocess, mesh, IMAGE_SHAPE).train
    inputs = [
        make_inputs(model, tx, split, mesh, seed, epoch)
        for seed in range(3)
        for epoch in range(2)
    ]
    CountTraces.traces.clear()
    for arguments in inputs:
        train_epoch(*arguments)
    assert len(CountTraces.traces) == 1


def test_epoch_donates_its_state_and_transfers_nothing():
    model, tx, mesh = MODELS["mlp"], optax.adam(1e-3), make_mesh(2)
    train_epoch = make_programs(model, tx, preprocess, mesh, IMAGE_SHAPE).train
    arguments = make_inputs(model, tx, make_split(), mesh)
    with jax.transfer_guard("disallow"):
        state, _ = train_epoch(*arguments)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(arguments[0]))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(arguments[1:]))


def test_an_epoch_in_chunks_is_bit_for_bit_the_whole_epoch():
    model, tx, mesh = MODELS["cnn"], optax.adam(1e-3), make_mesh(2)
    train_epoch = make_programs(model, tx, preprocess, mesh, IMAGE_SHAPE).train
    arguments = make_inputs(model, tx, make_split(80), mesh)  # 5 steps
    whole, metrics = train_epoch(*arguments)
    states, *others, _ = make_inputs(model, tx, make_split(80), mesh)
    losses = np.zeros((1, 5), np.float32)
    for first, last in ((0, 1), (1, 4), (4, 5)):
        states, chunk = train_epoch(states, *others, step_bounds(first, last, mesh))
        losses += np.asarray(chunk.loss_sum)  # 0 outside the chunk
    np.testing.assert_array_equal(losses, metrics.loss_sum)
    assert_trees_close(states, whole, 0)


@pytest.mark.parametrize("size, devices", [(1, 4), (501, 1), (1797, 2)])
def test_evaluation_counts_every_image_once(digits: Dataset, size, devices):
    images = np.concatenate([digits.train.images, digits.test.images])[:size]
    labels = np.concatenate([digits.train.labels, digits.test.labels])[:size]
    model, mesh = MODELS["mlp"], make_mesh(devices)
    programs = make_programs(model, optax.sgd(0.1), preprocess, mesh, IMAGE_SHAPE)
    variables = programs.init(seed_keys([0])).variables
    metrics = programs.evaluate(
        shard_seeds(variables, mesh),
        replicate(Split(images, labels), mesh),
        eval_indices(range(size), mesh, rows=3),
    )
    variables, metrics = jax.tree.map(lambda leaf: leaf[0], (variables, metrics))
    logits = model.apply(variables, preprocess(images))
    _, want = batch_metrics(logits, jnp.asarray(labels), jnp.ones(size))
    assert float(metrics.images) == size
    assert float(metrics.correct) == float(want.correct)
    np.testing.assert_allclose(metrics.loss_sum, want.loss_sum, rtol=1e-5)


def compiled_epoch(model):
    """Returns the HLO of a network's epoch on two devices, compiled as for users."""
    tx, mesh = optax.adam(1e-3), make_mesh(2)
    arguments = make_inputs(model, tx, make_split(), mesh)
    lowered = make_programs(model, tx, preprocess, mesh, IMAGE_SHAPE).train.lower(
        *arguments
    )
    return lowered.compile(users_options()).as_text()


# XLA:CPU runs these as naive loops; it turns select-and-scatter into scatter.
SLOW = {"convolution", "select-and-scatter", "scatter", "reduce-window"}


@pytest.mark.parametrize("impl, slow", [("cpu", False), ("plain", True)])
def test_compiled_fast_cnn_epoch_has_no_slow_operation(impl, slow):
    stages = ConvStage(32, pool=2), ConvStage(64, pool=2), ConvStage(64)  # the default
    text = compiled_epoch(Rewritten(CNN(stages, (64,), 10), impl))
    operations = set(re.findall(r" ([a-z][a-z-]+)\(", text))
    assert bool(operations & SLOW) == slow
    # Calls that keep XLA:CPU from repeating elementwise operations.
    assert impl == "plain" or "call" in operations


def test_no_sum_is_recomputed_for_every_gradient():
    text = compiled_epoch(MODELS["lstm"])
    fusions = re.findall(r"^%fused_.*?^}", text, re.MULTILINE | re.DOTALL)
    assert any(" reduce(" in fusion for fusion in fusions)
    joined = [fusion for fusion in fusions if re.search("ROOT.*(concat|pad)", fusion)]
    assert not any(" reduce(" in fusion for fusion in joined)


@pytest.mark.parametrize(
    "model, changes, seeds, shape",
    [
        ("mlp", {}, 1, (1, 1)),  # few operations per parameter: sharding costs more
        ("cnn", {}, 1, (1, 8)),
        ("cnn", dict(batch_size=4), 1, (1, 2)),
        ("mlp", dict(cpu_devices=3), 1, (1, 3)),
        ("cnn", {}, 2, (2, 4)),
        ("mlp", {}, 10, (2, 1)),
        ("mlp", {}, 3, (1, 1)),
    ],
)
def test_seeds_then_batches_use_as_many_devices_as_speed_them_up(
    model, changes, seeds, shape
):
    mesh = choose_mesh(TrainConfig(model=model, **changes), seeds, MNIST)
    assert mesh.devices.shape == shape


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(InputError, match="at most the 8 .*; got 9"):
        choose_mesh(TrainConfig(cpu_devices=9), 1, MNIST)
