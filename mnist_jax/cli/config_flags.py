"""Defines an absl flag per field of `TrainConfig`, and builds a config from them."""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from absl import flags

from mnist_jax.cli.parsing import ListParser, OrNoneParser
from mnist_jax.config import TrainConfig, as_text, check_used, model_kind

flags.disclaim_key_flags()  # so that --help of the program lists them

_FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}
_PARSERS: dict[Any, flags.ArgumentParser[Any]] = {
    str: flags.ArgumentParser(),
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
    tuple[int, ...]: ListParser(int, may_be_empty=True),
    tuple[float, ...]: ListParser(float, may_be_empty=True),
    tuple[str, ...]: ListParser(str, may_be_empty=True),
}


def define_config_flags(
    flag_values: flags.FlagValues = flags.FLAGS,
    *,
    only: Sequence[str] = tuple(_FIELDS),
    exclude: Sequence[str] = (),
) -> None:
    """Defines a flag per field of `TrainConfig`; an unset flag means the default."""
    hints = typing.get_type_hints(TrainConfig)
    for name in only:
        if name in exclude:
            continue
        metadata, kind = _FIELDS[name].metadata, hints[name]
        text = metadata["help"]
        if metadata["needs"]:
            other, *values = metadata["needs"]
            text += f" (with --{other}={'|'.join(values)})"
        default = _default_text(name)
        text += f"; default {default}"
        more: dict[str, Any] = {"flag_values": flag_values}
        if metadata["choices"]:
            flags.DEFINE_enum(name, None, metadata["choices"], text, **more)
        elif kind is bool:
            flags.DEFINE_boolean(name, None, text, **more)
        else:
            parser = _PARSERS.get(kind) or _PARSERS[typing.get_args(kind)[0]]
            parser = OrNoneParser(parser) if default == "none" else parser
            flags.DEFINE(parser, name, None, text, **more)


def _default_text(name: str) -> str:
    """Formats a field's default, for each model or dataset if they differ."""
    field = _FIELDS[name]
    by_kind = field.metadata["defaults"]
    if not by_kind:
        return as_text(field.default) or "none"
    return ", ".join(f"{as_text(v) or 'none'} ({m})" for m, v in by_kind.items())


def config_from_flags(
    flag_values: flags.FlagValues, model: str | None = None, **changes: Any
) -> TrainConfig:
    """Returns the config given by the flags, with the model's defaults for the rest.

    Programs that train several networks give each as `model`: flags that apply to
    another one only are then ignored, otherwise they are an error. `changes` are fields
    that the program sets itself.
    """
    given: dict[str, Any] = {
        name: flag_values[name].value for name in _FIELDS if name in flag_values
    }
    if model is not None:
        for name, field in _FIELDS.items():
            other, *values = field.metadata["needs"] or ("",)
            if other == "model" and model_kind(model) not in values:
                given.pop(name, None)
        given["model"] = model
    given.update(changes)
    given = {name: value for name, value in given.items() if value is not None}
    config = TrainConfig(**given)
    check_used(config, given)
    return config
