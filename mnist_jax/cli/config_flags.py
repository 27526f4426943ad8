"""Defines an absl flag per field of `TrainConfig`, and builds a config from them."""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from absl import flags

from mnist_jax.config import TrainConfig, as_text, check_used, model_kind

flags.disclaim_key_flags()  # so that --help of the program lists them

_FIELDS = {field.name: field for field in dataclasses.fields(TrainConfig)}


class _TupleParser(flags.ArgumentParser):
    """Parses comma-separated items of one type; an empty string is an empty tuple."""

    def __init__(self, item_type: type) -> None:
        self.item_type = item_type
        kind = {int: "integers", float: "numbers", str: "strings"}[item_type]
        self.syntactic_help = f"a comma-separated list of {kind}"

    def parse(self, argument: Any) -> tuple[Any, ...]:
        if isinstance(argument, tuple):
            return argument
        try:
            items = [item.strip() for item in argument.split(",") if item.strip()]
            return tuple(map(self.item_type, items))
        except ValueError:
            raise ValueError(f"must be {self.syntactic_help}") from None


class _OrNone(flags.ArgumentParser):
    """Parses what another parser does, or none, which programs that tune send."""

    def __init__(self, parser: flags.ArgumentParser) -> None:
        self._parser = parser
        self.syntactic_help = f"{parser.syntactic_help} or none"

    def parse(self, argument: Any) -> Any:
        return None if argument.lower() == "none" else self._parser.parse(argument)


def _parser_of(kind: Any) -> flags.ArgumentParser:
    """Returns the parser of numbers, or of tuples."""
    items = typing.get_args(kind) or (kind,)
    if typing.get_origin(kind) is tuple:
        return _TupleParser(items[0])
    return flags.IntegerParser() if int in items else flags.FloatParser()


def define_config_flags(
    flag_values: flags.FlagValues = flags.FLAGS,
    *,
    only: Sequence[str] = tuple(_FIELDS),
    exclude: Sequence[str] = (),
) -> None:
    """Defines a flag per field of `TrainConfig`; an unset flag means the default.

    Args:
        flag_values: where to define them.
        only: fields that the program uses.
        exclude: fields that the program sets itself.
    """
    hints = typing.get_type_hints(TrainConfig)
    for name in only:
        if name in exclude:
            continue
        metadata, kind = _FIELDS[name].metadata, hints[name]
        text, choices = metadata["help"], metadata["choices"]
        if metadata["needs"]:
            other, values = metadata["needs"]
            text += f" (with --{other}={'|'.join(values)})"
        default = _default_text(name)
        text += f"; default {default}"
        more: dict[str, Any] = {"flag_values": flag_values}
        if choices:
            flags.DEFINE_enum(name, None, choices, text, **more)
        elif kind is bool:
            flags.DEFINE_boolean(name, None, text, **more)
        elif kind is str:
            flags.DEFINE_string(name, None, text, **more)
        else:
            parser = _parser_of(kind)
            parser = _OrNone(parser) if default == "none" else parser
            flags.DEFINE(parser, name, None, text, **more)


def _default_text(name: str) -> str:
    """Formats a field's default, for each model or dataset if they differ."""
    field = _FIELDS[name]
    mapping = field.metadata["defaults"]
    if not mapping:
        return as_text(field.default) or "none"
    return ", ".join(f"{as_text(v) or 'none'} ({m})" for m, v in mapping.items())


def config_from_flags(
    flag_values: flags.FlagValues, model: str | None = None, **changes: Any
) -> TrainConfig:
    """Returns the config given by the flags, with the model's defaults for the rest.

    Args:
        flag_values: parsed flags.
        model: the model, for programs that train several; flags that apply to another
            model are then ignored, otherwise they are an error.
        **changes: fields that the program sets itself.

    Raises:
        InputError: a value is not allowed, or a flag has no effect with the others.
    """
    given: dict[str, Any] = {
        name: flag_values[name].value
        for name in _FIELDS
        if name in flag_values and flag_values[name].value is not None
    }
    if model is not None:
        kind = model_kind(model)
        needs = {name: field.metadata["needs"] for name, field in _FIELDS.items()}
        given = {
            name: value
            for name, value in given.items()
            if not needs[name] or needs[name][0] != "model" or kind in needs[name][1]
        }
        given["model"] = model
    given.update(changes)
    given = {name: value for name, value in given.items() if value is not None}
    config = TrainConfig(**given)
    check_used(config, given)
    return config
