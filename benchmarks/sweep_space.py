"""The settings of a sweep: parses `--vary`, and combines, samples or draws its values.

A setting is a text per flag, as on the command line of `experiments.train`.
"""

import functools
import itertools
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from mnist_jax.cli.config_flags import config_from_flags, define_config_flags
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.networks import create_model
from mnist_jax.reporting.sweep_tables import import_optuna
from mnist_jax.training.optimizers import create_schedule
from mnist_jax.training.prepare import split_for_training

Settings = dict[str, str]

_HINTS = typing.get_type_hints(TrainConfig)
# Fields that `--vary` does not take, and what to give instead.
_NOT_VARIED = {
    "model": "give the networks by --models",
    "seed": "give the seeds by --seed and --seeds",
    "dataset": "accuracies on different data do not compare; run a sweep for each",
}
_FORMS = "values such as 1e-3,3e-3, or a range such as log(1e-4,1e-2) or uniform(0,0.5)"


class Range(NamedTuple):
    """Numbers to sample from."""

    low: float
    high: float
    log: bool  # uniform in the logarithm
    whole: bool  # integers only

    def text(self, number: float) -> str:
        """Formats a sampled number, to four digits unless it is an integer."""
        return str(round(number)) if self.whole else f"{number:.4g}"


class Axis(NamedTuple):
    """A varied flag: its values, or the range to sample them from."""

    name: str
    values: Sequence[str]  # the ends of a range
    range: Range | None = None

    def draw(self, trial: Any) -> str:
        """Returns the value of an Optuna trial, which draws it if it has none."""
        if self.range is None:
            return str(trial.suggest_categorical(self.name, self.values))
        low, high, log, whole = self.range
        suggest = trial.suggest_int if whole else trial.suggest_float
        return self.range.text(suggest(self.name, low, high, log=log))

    def parameter(self, text: str) -> str | float:
        """Returns the parameter of an Optuna trial that draws a value."""
        if self.range is None:
            return text
        return int(text) if self.range.whole else float(text)


def parse_axis(text: str) -> Axis:
    """Parses a `--vary`.

    Values are separated by commas, or by semicolons if there is one, so that a value
    may have commas. A semicolon at the end is dropped.

    >>> parse_axis("hidden=128,128;256").values
    ['128,128', '256']
    >>> parse_axis("learning_rate=log(1e-4,1e-2)").range
    Range(low=0.0001, high=0.01, log=True, whole=False)
    """
    name, _, values = (word.strip() for word in text.partition("="))
    if name not in _HINTS:
        raise InputError(
            f"--vary={text}: {name or 'nothing'} is no flag of a run's config; give "
            "one of experiments.train, as in --vary=learning_rate=1e-3,3e-3"
        )
    if name in _NOT_VARIED:
        raise InputError(f"--vary={text}: {_NOT_VARIED[name]}")
    if match := re.fullmatch(r"(log|uniform)\(([^,;]+),([^,;]+)\)", values):
        ends = _parse_range(text, name, *match.groups())
        return Axis(name, [ends.text(ends.low), ends.text(ends.high)], ends)
    separator = ";" if ";" in values else ","
    items = [item.strip() for item in values.removesuffix(";").split(separator)]
    if items == [""] and not values:
        raise InputError(f"--vary={text} has no value; give {_FORMS}")
    return Axis(name, list(dict.fromkeys(items)))


def _parse_range(text: str, name: str, kind: str, *ends: str) -> Range:
    """Returns a range of numbers that a flag may have."""
    types_of = {_HINTS[name], *typing.get_args(_HINTS[name])}
    log, whole = kind == "log", float not in types_of
    try:
        low, high = map(int if whole else float, ends)
    except ValueError:
        low, high = 0, 0
    if not (
        types_of & {int, float} and -1e300 < low < high < 1e300 and (low > 0 or not log)
    ):
        raise InputError(
            f"--vary={text}: --{name} must be a number to have a range, and its ends "
            f"{'integers' if whole else 'numbers'}, the smaller one first"
            f"{' and above 0' if log else ''}"
        )
    return Range(low, high, log, whole)


def parse_space(texts: Sequence[str], models: Sequence[str]) -> list[Axis]:
    """Parses all `--vary`; the first axis is the model."""
    axes = [Axis("model", list(dict.fromkeys(models))), *map(parse_axis, texts)]
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--vary={name}=... is given twice; join the values")
    # One program serves all learning rates: they come one after the other.
    return sorted(axes, key=lambda axis: axis.name == "learning_rate")


def combine(axes: Sequence[Axis]) -> list[Settings]:
    """Returns all combinations of the values."""
    names = [axis.name for axis in axes]
    products = itertools.product(*(axis.values for axis in axes))
    return [dict(zip(names, values, strict=True)) for values in products]


def pairs(axes: Sequence[Axis]) -> list[Settings]:
    """Returns settings with each two values of any two axes, far fewer than all.

    Of a range they are its ends. The other axes have their first value.
    """
    first = {axis.name: axis.values[0] for axis in axes}
    return [first] + [
        {**first, one.name: value, other.name: another}
        for one, other in itertools.combinations(axes, 2)
        for value, another in itertools.product(one.values, other.values)
    ]


def sample(axes: Sequence[Axis], samples: int, seed: int) -> list[Settings]:
    """Draws settings independently: the same for the same seed."""
    optuna = import_optuna()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trials = [study.ask() for _ in range(samples)]
    return [{axis.name: axis.draw(trial) for axis in axes} for trial in trials]


@functools.cache
def _config_flags() -> flags.FlagValues:
    """Returns the flags of a config, in any process."""
    values = flags.FlagValues()
    define_config_flags(values)
    return values


def make_config(settings: Settings, base: Mapping[str, Any]) -> TrainConfig:
    """Returns the config of a setting.

    Args:
        settings: the model, and the varied flags.
        base: values of the other config flags that were given.

    Raises:
        InputError: the combination has no meaning; the message names it.
    """
    values = _config_flags()
    for name in values:
        values[name].value = base.get(name)
    model, changes = settings["model"], {}
    for name, text in settings.items():
        parser: Any = values[name].parser
        try:
            if name != "model":
                changes[name] = parser.parse(text)
        except ValueError:
            choices = getattr(parser, "enum_values", None)
            allowed = (
                f"one of {', '.join(choices)}" if choices else parser.syntactic_help
            )
            raise InputError(
                f"--vary={name}=...: {text or 'an empty text'} is not {allowed}; give "
                f"{_FORMS}; separate values that have commas by semicolons"
            ) from None
    try:
        config = config_from_flags(values, model, **changes)
        config.require_validation("vary", ",".join(changes) or "none")
    except InputError as error:
        raise _no_meaning(settings, error) from error
    return config


def check_trainable(
    settings: Settings, config: TrainConfig, dataset: Dataset, cores: int
) -> None:
    """Raises InputError if the network, the data or the devices do not fit a config.

    Arguments are as for `make_config`, with the dataset as returned by `load_dataset`
    and the cores of a trial. JAX must have started.
    """
    try:
        create_model(config, dataset.shapes)
        if config.cpu_devices > cores:
            raise InputError(
                f"--cpu_devices must be at most the {cores} cores of a trial; got "
                f"{config.cpu_devices}"
            )
        config = config.for_dataset(dataset.name)
        size = len(split_for_training(dataset, config).train.labels)
        create_schedule(config, -(-size // config.batch_size) * config.epochs)
    except InputError as error:
        raise _no_meaning(settings, error) from error


def _no_meaning(settings: Settings, error: InputError) -> InputError:
    """Returns the error with the combination, if anything varies."""
    if len(settings) == 1:
        return error
    named = " ".join(f"{name}={value}" for name, value in settings.items())
    return InputError(f"--vary: the combination {named} cannot be trained: {error}")
