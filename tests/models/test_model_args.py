"""Fields of a custom network's class, given as text."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from flax import linen as nn

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.model_args import parse_model_args
from mnist_jax.models.networks import count_params, create_model
from mnist_jax.training.experiment import prepare
from mnist_jax.training.run_dir import fit_into, load_run

EXAMPLE = f"{Path(__file__).parents[2]}/examples/residual_mlp.py:ResidualMLP"


class Network(nn.Module):
    width: int = 8
    rate: float = 0.5
    bias: bool = True
    kind: str = "relu"
    widths: tuple[int, ...] = (1,)
    pair: tuple[int, float] = (1, 0.5)
    mode: Literal["same", "valid"] = "same"
    limit: float | None = None
    pairs: tuple[tuple[int, int], ...] = ()
    sequence: Sequence[int] = ()
    items: list[int] | None = None
    anything: Any = None


@pytest.mark.parametrize(
    "args, name, value",
    [
        (["width=64"], "width", 64),
        (["rate=1"], "rate", 1.0),
        (["rate=1e-3"], "rate", 0.001),
        (["bias=false"], "bias", False),
        (["kind=3"], "kind", "3"),
        (["widths=(8", "16)"], "widths", (8, 16)),  # a flag is split at commas
        (["widths=8"], "widths", (8,)),
        (["pair=(2", "1)"], "pair", (2, 1.0)),
        (["pairs=((1", "2)", "(3", "4))"], "pairs", ((1, 2), (3, 4))),
        (["sequence=[4", "8]"], "sequence", (4, 8)),
        (["items=[4", "8]"], "items", (4, 8)),  # a list cannot be hashed
        (["mode=valid"], "mode", "valid"),
        (["limit=none"], "limit", None),
        (["limit=2"], "limit", 2.0),
        (["anything=gelu"], "anything", "gelu"),
    ],
)
def test_values_have_the_declared_types(args, name, value):
    [(key, got)] = parse_model_args(Network, args).items()
    assert key == name and got == value and type(got) is type(value)


@pytest.mark.parametrize(
    "args, message",
    [
        (["depth=2"], "'depth=2' sets no field of Network; the fields of Network are "),
        (["width"], "'width' sets no field"),
        (["name=x"], "'name=x' sets no field"),
        (["width=2", "width=3"], "width is given twice"),
        (["width=2.5"], "width must be of type int; the fields"),
        (["width=true"], "width must be of type int"),
        (["rate=fast"], "rate must be of type float"),
        (["bias=1"], "bias must be of type bool"),
        (["widths=(1", "x)"], "widths must be of type tuple"),
        (["pair=(1", "2", "3)"], "pair must be of type tuple"),
        (["pairs=((1", "2)", "3)"], "pairs must be of type tuple"),
        (["items=[1", "x]"], "items must be of type list[int] | None"),
        (["anything=(1", "width=x"], "width must be of type int"),
        (["mode=full"], "mode must be of type"),
    ],
)
def test_wrong_fields_and_types_are_refused_with_the_fields(args, message):
    with pytest.raises(InputError) as error:
        parse_model_args(Network, args)
    assert message in str(error.value) and "width: int, rate: float" in str(error.value)


@pytest.mark.parametrize("hint", ["Missing", "Path.nothing", "not a type"])
def test_annotations_that_cannot_be_resolved_are_not_checked(hint):
    network = type("Typed", (nn.Module,), {"__annotations__": {"width": hint}})
    network.__module__ = __name__
    assert parse_model_args(network, ["width=64"]) == {"width": 64}


@pytest.mark.slow
def test_a_run_with_fields_trains_and_loads(digits: Dataset, tmp_path):
    args = ("width=8", "depth=1")
    config = TrainConfig(model=EXAMPLE, model_args=args, dataset="digits", epochs=1)
    assert count_params(create_model(config, MNIST), IMAGE_SHAPE) < count_params(
        create_model(dataclasses.replace(config, model_args=()), MNIST), IMAGE_SHAPE
    )
    fit_into(prepare(config, digits), {0: tmp_path})
    run = load_run(tmp_path)
    assert run.model.width == 8 and run.model.depth == 1
    assert run.config.model_args == args
