"""Fields of a custom network's class, given as text."""

import dataclasses
from pathlib import Path

import pytest
from flax import linen as nn
from helpers.runs import train_into

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.custom import parse_model_args
from mnist_jax.models.networks import count_params, create_model
from mnist_jax.training.prepare import prepare
from mnist_jax.training.run_dir import load_run

EXAMPLE = f"{Path(__file__).parents[2]}/examples/residual_mlp.py:ResidualMLP"


class Network(nn.Module):
    width: int = 8
    kind: str = "relu"
    widths: tuple[int, ...] = (1,)


@pytest.mark.parametrize(
    "args, value",
    [
        (["width=64"], 64),
        (["width=-1e-3"], -0.001),
        (["width=false"], False),
        (["width=None"], None),
        (["width=gelu"], "gelu"),
        (["width='3'"], "3"),
        (["width=(8", "16)"], (8, 16)),  # a flag is split at commas
        (["width=((1", "2)", "(3", "same))"], ((1, 2), (3, "same"))),
        (["width=[4", "8]"], (4, 8)),  # a list cannot be hashed
    ],
)
def test_values_are_literals_or_words(args, value):
    fields = parse_model_args(Network, [*args, "kind=tanh"])
    assert fields == {"width": value, "kind": "tanh"}
    assert type(fields["width"]) is type(value)


@pytest.mark.parametrize(
    "args",
    [["depth=2"], ["width"], ["name=x"], ["widths=(1", "x=2"], ["width="], ["=2"]],
)
def test_what_is_no_field_is_refused_with_the_fields(args):
    with pytest.raises(InputError, match="its fields are width, kind, widths$"):
        parse_model_args(Network, args)


@pytest.mark.slow
def test_a_run_with_fields_trains_and_loads(digits: Dataset, tmp_path):
    args = ("width=8", "depth=1")
    config = TrainConfig(model=EXAMPLE, model_args=args, dataset="digits", epochs=1)
    assert count_params(create_model(config, MNIST), IMAGE_SHAPE) < count_params(
        create_model(dataclasses.replace(config, model_args=()), MNIST), IMAGE_SHAPE
    )
    train_into(prepare(config, digits), {0: tmp_path})
    run = load_run(tmp_path)
    assert run.model.width == 8 and run.model.depth == 1
    assert run.config.model_args == args
