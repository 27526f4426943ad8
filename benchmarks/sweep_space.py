"""The settings of a sweep: parses `--vary`, combines or draws its values.

A space has the values or the range of each varied flag, as Optuna's distributions. A
trial's parameters are values from it, and its settings their texts, as on the command
line of `experiments.train`.
"""

import itertools
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from absl import flags
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from mnist_jax.cli.config_flags import config_from_flags, define_config_flags
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.networks import create_model
from mnist_jax.training.optimizers import create_schedule
from mnist_jax.training.prepare import split_for_training

Space = dict[str, BaseDistribution]
Params = dict[str, Any]

# Fields that `--vary` does not take, and what to give instead.
_NOT_VARIED = {
    "model": "give the networks by --models",
    "seed": "give the seeds by --seed and --seeds",
    "dataset": "accuracies on different data do not compare; run a sweep for each",
}


def parse_axis(text: str) -> tuple[str, BaseDistribution]:
    """Parses a `--vary`.

    Values are separated by commas, or by semicolons if there is one, so that a value
    may have commas. A semicolon at the end is dropped.

    >>> parse_axis("hidden=128,128;256")
    ('hidden', CategoricalDistribution(choices=('128,128', '256')))
    >>> parse_axis("learning_rate=log(1e-4,1e-2)")
    ('learning_rate', FloatDistribution(high=0.01, log=True, low=0.0001, step=None))
    """
    name, _, values = (word.strip() for word in text.partition("="))
    hint = typing.get_type_hints(TrainConfig).get(name)
    if hint is None or name in _NOT_VARIED:
        reason = "give a flag of experiments.train, as in learning_rate=1e-3,3e-3"
        raise InputError(f"--vary={text}: {_NOT_VARIED.get(name, reason)}")
    if match := re.fullmatch(r"(log|uniform)\(([^,;]+),([^,;]+)\)", values):
        kind, low, high = match.groups()
        try:
            if int in (hint, *typing.get_args(hint)):
                return name, IntDistribution(int(low), int(high), kind == "log")
            return name, FloatDistribution(float(low), float(high), kind == "log")
        except ValueError as error:
            raise InputError(f"--vary={text}: {error}") from error
    separator = ";" if ";" in values else ","
    items = [item.strip() for item in values.removesuffix(";").split(separator)]
    return name, CategoricalDistribution(list(dict.fromkeys(items)))


def parse_space(texts: Sequence[str], models: Sequence[str]) -> Space:
    """Parses all `--vary`; the first axis is the model."""
    space: Space = {"model": CategoricalDistribution(list(dict.fromkeys(models)))}
    for name, axis in map(parse_axis, texts):
        if name in space:
            raise InputError(f"--vary={name}=... is given twice; join the values")
        space[name] = axis
    # One program serves all learning rates: they come one after the other.
    return dict(sorted(space.items(), key=lambda item: item[0] == "learning_rate"))


def combine(space: Space) -> list[Params]:
    """Returns all combinations of the values; raises InputError for a range."""
    choices = []
    for name, axis in space.items():
        if not isinstance(axis, CategoricalDistribution):
            raise InputError(
                f"--vary={name}=... is a range, which needs --samples; give "
                "--samples=20, or values instead of the range"
            )
        choices.append(axis.choices)
    return [
        dict(zip(space, values, strict=True)) for values in itertools.product(*choices)
    ]


def sample(space: Space, samples: int, seed: int) -> list[Params]:
    """Draws parameters independently: the same for the same seed."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [study.ask(space).params for _ in range(samples)]


def name_of(settings: Mapping[str, str]) -> str:
    """Returns settings as in `model=mlp learning_rate=0.01`."""
    return " ".join(f"{name}={value}" for name, value in settings.items())


def make_config(
    settings: Mapping[str, str], given: Mapping[str, str], dataset: Dataset
) -> TrainConfig:
    """Returns the config of a setting; raises InputError if it cannot be trained.

    Args:
        settings: the model, and the varied flags.
        given: the other config flags that were given.
        dataset: that it must fit.
    """
    values, named = flags.FlagValues(), name_of(settings)
    define_config_flags(values)
    try:
        words = [f"--{name}={text}" for name, text in {**given, **settings}.items()]
        values(["sweep", *words])
        varied = {name: values[name].value for name in settings}
        config = config_from_flags(values, varied.pop("model"), **varied)
        config.require_validation("vary", named)
        create_model(config, dataset.shapes)
        fitted = config.for_dataset(dataset.name)
        size = len(split_for_training(dataset, fitted).train.labels)
        create_schedule(fitted, -(-size // fitted.batch_size) * fitted.epochs)
    except (InputError, flags.Error) as error:
        raise InputError(f"--vary: {named} cannot be trained: {error}") from error
    return config
