"""Tests of layer and data tables, and of frozen layers."""

import jax
import numpy as np
import pytest

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Dataset
from mnist_jax.models.flops import multiply_adds, training_flops
from mnist_jax.models.networks import count_params, create_model
from mnist_jax.reporting.summary import data_frame, format_totals, layer_frame
from mnist_jax.reporting.tables import markdown_table
from mnist_jax.training.fit import finish, fit
from mnist_jax.training.mesh import make_mesh
from mnist_jax.training.prepare import prepare


def test_layer_table_lists_shapes_settings_and_frozen_layers():
    config = TrainConfig(
        model="cnn",
        conv=("4:same:s2:tanh:pool2", "8:k5"),
        freeze=("Conv_1",),
        dropout=(0.5,),
    )
    layers = layer_frame(config, MNIST).set_index("layer")
    assert layers["output shape"].tolist() == [(7, 7, 4), (3, 3, 8), (64,), (10,)]
    assert layers["settings"].to_dict() == {
        "Conv_0": "3x3, stride 2, same, tanh, pool 2",
        "Conv_1": "5x5, valid, relu",
        "Dense_0": "relu, dropout 0.5",
        "Dense_1": "logits",
    }
    assert layers["frozen"].tolist() == ["no", "yes", "no", "no"]
    assert "frozen 808 parameters" in (totals := format_totals(config, layers, MNIST))
    table = markdown_table(layers.reset_index())
    assert max(map(len, f"{table}\n{totals}".splitlines())) <= 100


@pytest.mark.parametrize("model", ["mlp", "lstm", "cnn"])
def test_layer_table_adds_up_to_the_network(model):
    config = TrainConfig(model=model)
    layers = layer_frame(config, MNIST)
    assert layers["parameters"].sum() == count_params(
        create_model(config, MNIST), IMAGE_SHAPE
    )
    assert layers["multiply-adds"].sum() == sum(multiply_adds(config, MNIST))
    flops = f"{training_flops(config, MNIST):,} floating"
    assert flops in format_totals(config, layers, MNIST)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_layers_stay_bit_identical_and_others_change(digits, optimizer):
    fields = dict(freeze=("Dense_0",), optimizer=optimizer)
    config = TrainConfig(hidden=(8,), epochs=2, batch_size=100, **fields)
    experiment = prepare(config, digits, mesh=make_mesh(2))
    states, _ = experiment.programs.init_run([3])
    start = jax.tree.map(lambda leaf: np.asarray(leaf[0]), states.params)
    [(_, variables)] = finish(fit(experiment, [3]))
    same = jax.tree.map(np.array_equal, start, variables["params"])
    assert same == {
        "Dense_0": {"kernel": True, "bias": True},
        "Dense_1": {"kernel": False, "bias": False},
    }


def test_data_table_lists_shapes_and_ranges(digits: Dataset):
    frame = data_frame(digits).set_index("array")
    assert frame.loc["train images", "shape"] == (1437, 28, 28)
    assert frame.loc["test labels", ["min", "max"]].tolist() == [0, 9]
    assert set(frame["dtype"]) == {"uint8", "int32"}
