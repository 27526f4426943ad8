"""The settings of a sweep: parses `--vary`, and combines or samples its values.

A setting is a text per flag, as on the command line of `experiments.train`.
"""

import itertools
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from mnist_jax.cli.config_flags import config_from_flags
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.networks import create_model
from mnist_jax.training.experiment import split_for_training
from mnist_jax.training.optimizers import create_schedule

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


class Axis(NamedTuple):
    """A varied flag: its values, or the range to sample them from."""

    name: str
    values: Sequence[str]  # empty if there is a range
    range: Range | None = None

    @property
    def corners(self) -> Sequence[str]:
        """The values, or the ends of the range."""
        if self.range is None:
            return self.values
        return [as_value(number, self.range) for number in self.range[:2]]


def as_value(number: float, range: Range) -> str:
    """Formats a sampled number, to four digits unless it is an integer."""
    return str(round(number)) if range.whole else f"{number:.4g}"


def parse_axis(text: str) -> Axis:
    """Parses a `--vary`.

    Values are separated by commas, or by semicolons if there is one, so that a value
    may have commas. A semicolon at the end is dropped.

    Raises:
        InputError: the flag cannot vary, or there is no value.

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
        return Axis(name, [], _parse_range(text, name, *match.groups()))
    separator = ";" if ";" in values else ","
    items = [item.strip() for item in values.removesuffix(";").split(separator)]
    if items == [""] and not values:
        raise InputError(f"--vary={text} has no value; give {_FORMS}")
    return Axis(name, list(dict.fromkeys(items)))


def _parse_range(text: str, name: str, kind: str, low: str, high: str) -> Range:
    """Returns a range; raises InputError if it is none or the flag no number."""
    hint = _HINTS[name]
    types_of = {hint, *typing.get_args(hint)}
    if not types_of & {int, float}:
        raise InputError(
            f"--vary={text}: --{name} is not a number, so it has no range; give its "
            "values, comma-separated"
        )
    log, whole = kind == "log", float not in types_of
    try:
        number = int if whole else float
        ends: tuple[float, float] = number(low), number(high)
    except ValueError:
        ends = (0, 0)
    if not (-1e300 < ends[0] < ends[1] < 1e300) or (log and ends[0] <= 0):
        kinds = "integers" if whole else "numbers"
        raise InputError(
            f"--vary={text}: the ends of a range must be {kinds}, the smaller one first"
            f"{' and above 0' if log else ''}; got {low},{high}"
        )
    return Range(ends[0], ends[1], log, whole)


def parse_space(texts: Sequence[str], models: Sequence[str]) -> list[Axis]:
    """Parses all `--vary`; the first axis is the model.

    Raises:
        InputError: as for `parse_axis`, or a flag is given twice.
    """
    axes = [Axis("model", list(dict.fromkeys(models))), *map(parse_axis, texts)]
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--vary={name}=... is given twice; join the values")
    # One program serves all learning rates: they come one after the other.
    return sorted(axes, key=lambda axis: axis.name == "learning_rate")


def combine(axes: Sequence[Axis]) -> list[Settings]:
    """Returns all combinations of the values, and of the ends of ranges."""
    names = [axis.name for axis in axes]
    products = itertools.product(*(axis.corners for axis in axes))
    return [dict(zip(names, values, strict=True)) for values in products]


def pairs(axes: Sequence[Axis]) -> list[Settings]:
    """Returns settings with each two corners of any two axes, far fewer than all.

    The other axes have their first.
    """
    first = {axis.name: axis.corners[0] for axis in axes}
    return [first] + [
        {**first, one.name: value, other.name: another}
        for one, other in itertools.combinations(axes, 2)
        for value, another in itertools.product(one.corners, other.corners)
    ]


def make_config(settings: Mapping[str, str], values: flags.FlagValues) -> TrainConfig:
    """Returns the config of a setting.

    Args:
        settings: the model, and the varied flags.
        values: parsed flags, those of a run's config among them, for the rest.

    Raises:
        InputError: the combination has no meaning; the message names it.
    """
    changes = {
        name: _parse_value(name, text, values)
        for name, text in settings.items()
        if name != "model"
    }
    try:
        config = config_from_flags(values, settings["model"], **changes)
        config.require_validation("vary", ",".join(changes) or "none")
    except InputError as error:
        raise _no_meaning(settings, error) from error
    return config


def check_trainable(
    settings: Mapping[str, str], config: TrainConfig, dataset: Dataset, cores: int
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


def _no_meaning(settings: Mapping[str, str], error: InputError) -> InputError:
    """Returns the error with the combination, if anything varies."""
    if len(settings) == 1:
        return error
    named = " ".join(f"{name}={value}" for name, value in settings.items())
    return InputError(f"--vary: the combination {named} cannot be trained: {error}")


def _parse_value(name: str, text: str, values: flags.FlagValues) -> Any:
    """Returns a value as its flag parses it; raises InputError."""
    parser: Any = values[name].parser
    try:
        return parser.parse(text)
    except ValueError:
        choices = getattr(parser, "enum_values", None)
        allowed = f"one of {', '.join(choices)}" if choices else parser.syntactic_help
        raise InputError(
            f"--vary={name}=...: {text or 'an empty text'} is not {allowed}; give "
            f"{_FORMS}; separate values that have commas by semicolons"
        ) from None
