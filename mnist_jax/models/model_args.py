"""Fields of a custom network's class, parsed from text by their types."""

import ast
import dataclasses
import inspect
import types
import typing
from collections.abc import Sequence
from typing import Any

from mnist_jax.errors import InputError

_WORDS = {"true": True, "false": False, "none": None}


def parse_model_args(cls: type, args: Sequence[str]) -> dict[str, Any]:
    """Returns the values of a module's fields, as the types that it declares.

    Args:
        cls: a linen module class, or an NNX module class: the arguments of `__init__`.
        args: items such as `width=64`; a tuple or list in brackets may be spread over
            several, since flags are split at commas. The value is a tuple.

    Raises:
        InputError: the class has no such field, or it has another type.

    >>> from flax import linen as nn
    >>> class Mixer(nn.Module):
    ...     width: int = 64
    ...     rates: tuple[float, ...] = ()
    >>> parse_model_args(Mixer, ["width=32", "rates=(0.1", "0)"])
    {'width': 32, 'rates': (0.1, 0.0)}
    """
    if not args:
        return {}
    init = cls.__init__  # type: ignore[misc]
    try:
        hints = typing.get_type_hints(cls if dataclasses.is_dataclass(cls) else init)
    except Exception:  # an annotation for type checkers only, such as a missing name
        hints = {}
    kinds = {
        name: hints.get(name, Any)
        for name in inspect.signature(init).parameters
        if name not in ("self", "parent", "name", "rngs")
    }
    values: dict[str, Any] = {}
    for item in _join_brackets(",".join(args).split(",")):
        name, equals, text = (part.strip() for part in item.partition("="))
        problem = ""
        if not equals or name not in kinds:
            problem = f"{item!r} sets no field of {cls.__name__}"
        elif name in values:
            problem = f"{name} is given twice"
        else:
            try:
                values[name] = _convert(kinds[name], text)
            except ValueError:
                problem = f"{name} must be of type {_type_name(kinds[name])}"
        if problem:
            known = [f"{field}: {_type_name(kind)}" for field, kind in kinds.items()]
            raise InputError(
                f"--model_args={','.join(args)}: {problem}; the fields of "
                f"{cls.__name__} are {', '.join(known) or 'none'}"
            )
    return values


def _join_brackets(parts: Sequence[str]) -> list[str]:
    """Joins parts of a text that was split at commas within brackets.

    >>> _join_brackets(["pairs=((1", "2)", "(3", "4))", "width=8"])
    ['pairs=((1,2),(3,4))', 'width=8']
    """
    items = list(parts[:1])
    for part in parts[1:]:
        depth = sum((c in "([") - (c in ")]") for c in items[-1])
        if depth > 0 and "=" not in part:  # a field starts even after a missing bracket
            items[-1] += f",{part}"
        else:
            items.append(part)
    return items


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)


def _convert(kind: Any, text: str) -> Any:
    """Parses a value; raises ValueError if it has another type."""
    if kind is str:
        return text
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = _WORDS.get(text.lower(), text)
    return _as_type(kind, value)


def _as_type(kind: Any, value: Any) -> Any:
    """Returns a value as a type; raises ValueError if it has another."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for option in options:
            try:
                return _as_type(option, value)
            except ValueError:
                continue
    elif origin is typing.Literal:
        if value in options:
            return value
    elif (origin or kind) in (tuple, list, Sequence):
        # A tuple in place of a list too, since fields are hashed.
        items = value if isinstance(value, tuple | list) else (value,)
        if not options or options[-1] is Ellipsis or origin is not tuple:
            return tuple(_as_type(options[0] if options else Any, v) for v in items)
        if len(items) == len(options):
            return tuple(map(_as_type, options, items))
    elif kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif kind in (int, float, bool, types.NoneType):
        if type(value) is kind:
            return value
    elif kind is Any or not isinstance(kind, type) or isinstance(value, kind):
        return value
    raise ValueError
