"""The compiled epoch: equal to a loop, one trace, donated, no hidden transfers."""

import itertools
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
from mnist_jax.testing import (
    check_epoch_equals_steps,
    check_same_tree,
    make_split,
    preprocess,
)
from mnist_jax.training import epochs
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

pytestmark = pytest.mark.slow

STAGES = (ConvStage(8, pool=2), ConvStage(32))  # direct, then Winograd
MODELS = {
    "mlp": MLP((16,), 10),
    "lstm": LSTM((8,), "tanh", (), 10, impl="cpu"),
    "cnn": CNN(STAGES, (16,), 10, impl="cpu"),
}


@pytest.mark.parametrize("name", MODELS)
def test_epoch_equals_a_loop_of_steps(name):
    check_epoch_equals_steps(MODELS[name])


def test_epoch_with_dropout_equals_a_loop_of_steps():
    check_epoch_equals_steps(MLP((16,), 10, dropout=(0.5,)))


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("batch_size", [24, 23])
def test_sharded_epoch_equals_a_loop_of_steps(devices, batch_size):
    check_epoch_equals_steps(MLP((16,), 10, dropout=(0.5,)), devices, batch_size)


# Shares of 24 and 11 images in microbatches of at most 5: five of 5, and three of 4,
# padded.
@pytest.mark.parametrize("name", ["lstm", "cnn"])
@pytest.mark.parametrize("devices, batch_size", [(1, 24), (2, 22)])
def test_epoch_in_microbatches_equals_a_loop_of_whole_steps(
    name, devices, batch_size, monkeypatch
):
    model = MODELS[name].clone(dropout=(0.5,))
    monkeypatch.setattr(type(model), "microbatch", 5)
    check_epoch_equals_steps(model, devices, batch_size)


def test_large_shares_of_a_batch_are_split_into_microbatches():
    cnn = MODELS["cnn"]
    for model, size in ((cnn, 64), (MODELS["lstm"], 32)):
        sizes = (1, size, size + 1, 2 * size + 1)
        counts = [epochs.count_microbatches(model, images) for images in sizes]
        assert counts == [1, 1, 2, 3]
    assert epochs.count_microbatches(MODELS["mlp"], 1000) == 1
    assert epochs.count_microbatches(cnn.clone(impl="plain"), 1000) == 1


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


@pytest.mark.parametrize("devices", [1, 2])
def test_epoch_donates_its_state_and_transfers_nothing(devices):
    model, tx, mesh = MODELS["mlp"], optax.adam(1e-3), make_mesh(devices)
    train_epoch = make_programs(model, tx, preprocess, mesh, IMAGE_SHAPE).train
    arguments = make_inputs(model, tx, make_split(), mesh)
    with jax.transfer_guard("disallow"):
        state, _ = train_epoch(*arguments)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(arguments[0]))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(arguments[1:]))


@pytest.mark.parametrize("name", MODELS)
def test_an_epoch_in_chunks_is_bit_for_bit_the_whole_epoch(name):
    model, tx, mesh = MODELS[name], optax.adam(1e-3), make_mesh(2)
    train_epoch = make_programs(model, tx, preprocess, mesh, IMAGE_SHAPE).train
    arguments = make_inputs(model, tx, make_split(80), mesh)  # 5 steps
    whole, metrics = train_epoch(*arguments)
    states, *others, _ = make_inputs(model, tx, make_split(80), mesh)
    losses = np.zeros((1, 5), np.float32)
    for first, last in ((0, 1), (1, 4), (4, 5)):
        states, chunk = train_epoch(states, *others, step_bounds(first, last, mesh))
        losses += np.asarray(chunk.loss_sum)  # 0 outside the chunk
    np.testing.assert_array_equal(losses, metrics.loss_sum)
    check_same_tree(states, whole, 0)


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


@pytest.mark.parametrize("size, batch_size", [(10, 3), (60_000, 128)])
def test_eval_and_train_indices_contain_each_image_once(size, batch_size):
    mesh = make_mesh(4)
    train = shard_indices(epoch_indices(0, 0, size, batch_size)[None], mesh)
    for sharded in (train, eval_indices(range(size), mesh)):
        indices = np.asarray(sharded)
        assert sorted(indices[indices >= 0].tolist()) == list(range(size))
        assert indices.shape[-1] % 4 == 0


def compiled_epoch(model, images=64):
    """Returns the HLO of a network's epoch on two devices, compiled as for users."""
    tx, mesh = optax.adam(1e-3), make_mesh(2)
    arguments = make_inputs(model, tx, make_split(images), mesh)
    lowered = make_programs(model, tx, preprocess, mesh, IMAGE_SHAPE).train.lower(
        *arguments
    )
    return lowered.compile(users_options()).as_text()


# XLA:CPU runs these as naive loops; it turns select-and-scatter into scatter.
SLOW = {"convolution", "select-and-scatter", "scatter", "reduce-window"}


@pytest.mark.parametrize("impl, slow", [("cpu", False), ("plain", True)])
def test_compiled_fast_cnn_epoch_has_no_slow_operation(impl, slow):
    stages = ConvStage(32, pool=2), ConvStage(64, pool=2), ConvStage(64)  # the default
    text = compiled_epoch(CNN(stages, (64,), 10, impl=impl))
    operations = set(re.findall(r" ([a-z][a-z-]+)\(", text))
    assert bool(operations & SLOW) == slow


@pytest.mark.parametrize("images", [16, 64])  # one step and four
def test_no_sum_is_recomputed_for_every_gradient(images):
    text = compiled_epoch(MODELS["lstm"], images)
    fusions = re.findall(r"^%fused_.*?^}", text, re.MULTILINE | re.DOTALL)
    assert any(" reduce(" in fusion for fusion in fusions)
    joined = [fusion for fusion in fusions if re.search("ROOT.*(concat|pad)", fusion)]
    assert not any(" reduce(" in fusion for fusion in joined)


@pytest.mark.parametrize(
    "model, changes, devices",
    [
        ("mlp", {}, 1),  # few operations per parameter: sharding costs more
        ("cnn", {}, 8),
        ("cnn", dict(batch_size=4), 2),
        ("mlp", dict(cpu_devices=3), 3),
    ],
)
def test_a_batch_uses_as_many_devices_as_speed_it_up(model, changes, devices):
    mesh = choose_mesh(TrainConfig(model=model, **changes), 1, MNIST)
    assert dict(mesh.shape) == {"seeds": 1, "batch": devices}


@pytest.mark.parametrize(
    "model, seeds, shape", [("cnn", 2, (2, 4)), ("mlp", 10, (2, 1)), ("mlp", 3, (1, 1))]
)
def test_seeds_are_sharded_evenly_before_batches(model, seeds, shape):
    assert choose_mesh(TrainConfig(model=model), seeds, MNIST).devices.shape == shape


def test_all_requested_devices_are_used():
    for devices, seeds in itertools.product(range(1, 9), repeat=2):
        mesh = choose_mesh(TrainConfig(model="cnn", cpu_devices=devices), seeds, MNIST)
        assert mesh.size == devices and seeds % mesh.shape["seeds"] == 0
    with pytest.raises(InputError, match="at most the 8 .*; got 9"):
        choose_mesh(TrainConfig(cpu_devices=9), 1, MNIST)
