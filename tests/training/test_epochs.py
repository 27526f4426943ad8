"""The compiled epoch: chunks, one compilation, donation, no hidden transfers."""

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
from mnist_jax.testing import assert_trees_close, no_compiling, no_transfers
from mnist_jax.testing.steps import make_split, preprocess
from mnist_jax.training.epochs import make_programs
from mnist_jax.training.mesh import (
    choose_mesh,
    eval_indices,
    make_mesh,
    replicate,
    step_bounds,
)
from mnist_jax.training.steps import batch_metrics

STAGES = (ConvStage(8, pool=2), ConvStage(32))  # direct, then Winograd
MODELS = {
    "mlp": MLP((16,), 10),
    "lstm": LSTM((8,), "tanh", (), 10, (0.5,), impl="cpu"),
    "cnn": Rewritten(CNN(STAGES, (16,), 10, (0.5,))),
}


def make(model, devices=2):
    """Returns the programs of a network."""
    mesh = make_mesh(devices)
    return make_programs(model, optax.adam(1e-3), preprocess, mesh, IMAGE_SHAPE)


def make_inputs(programs, size=64, seed=0, epoch=0):
    """Returns the arguments of a training epoch of one seed."""
    states, keys = programs.init_run([seed])
    orders = epoch_indices(seed, epoch, size, 16)[None]
    split = replicate(make_split(size), programs.mesh)
    return states, split, programs.shard(orders), programs.epoch_keys(keys, epoch)


def test_epochs_donate_their_state_transfer_nothing_and_compile_once():
    """With a smaller last batch."""
    programs = make(MODELS["mlp"])
    first, *others = (
        make_inputs(programs, 50, seed, epoch) for seed in range(2) for epoch in (0, 1)
    )
    bounds = step_bounds(0, 4, programs.mesh)
    programs.train(*first, bounds)
    with no_compiling(), no_transfers():
        for arguments in others:
            state, _ = programs.train(*arguments, bounds)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(arguments[0]))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(arguments[1:]))


def test_an_epoch_in_chunks_is_bit_for_bit_the_whole_epoch():
    programs = make(MODELS["cnn"])
    whole, metrics = programs.run_steps(*make_inputs(programs, 80))  # 5 steps
    (states, *others), losses = make_inputs(programs, 80), np.zeros((1, 5), np.float32)
    for chunk in ((0, 1), (1, 4), (4, 5)):
        states, found = programs.run_steps(states, *others, *chunk)
        losses += np.asarray(found.loss_sum)  # 0 outside the chunk
    np.testing.assert_array_equal(losses, metrics.loss_sum)
    assert_trees_close(states, whole, 0)


@pytest.mark.parametrize("size, devices", [(1, 4), (501, 1), (1797, 2)])
def test_evaluation_counts_every_image_once(digits: Dataset, size, devices):
    images = np.concatenate([digits.train.images, digits.test.images])[:size]
    labels = np.concatenate([digits.train.labels, digits.test.labels])[:size]
    programs = make(MODELS["mlp"], devices)
    variables = programs.init_run([0])[0].variables
    metrics = programs.evaluate(
        variables,
        replicate(Split(images, labels), programs.mesh),
        eval_indices(range(size), programs.mesh, rows=3),
    )
    variables, metrics = jax.tree.map(
        lambda leaf: leaf[0], jax.device_get((variables, metrics))
    )
    logits = MODELS["mlp"].apply(variables, preprocess(images))
    _, want = batch_metrics(logits, jnp.asarray(labels), jnp.ones(size))
    assert float(metrics.images) == size
    assert float(metrics.correct) == float(want.correct)
    np.testing.assert_allclose(metrics.loss_sum, want.loss_sum, rtol=1e-5)


def compiled_epoch(model):
    """Returns the HLO of a network's epoch on two devices, compiled as for users."""
    programs = make(model)
    bounds = step_bounds(0, 4, programs.mesh)
    lowered = programs.train.lower(*make_inputs(programs), bounds)
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
