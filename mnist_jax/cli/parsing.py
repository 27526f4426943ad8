"""Parses command lines, and the types of flags that absl lacks."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from mnist_jax.errors import InputError

PRESETS = Path(__file__).parents[2] / "experiments" / "presets"


def parse_flags(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """Parses a command line, the program's name first, into the flags of `values`.

    A flag overrides the same flag before it, and the one of a `--preset`.
    """
    try:
        rest = values(argv)
        if "preset" in values and (preset := values["preset"].value):
            rest = values([argv[0], f"--flagfile={PRESETS}/{preset}.cfg", *argv[1:]])
    except (flags.Error, ValueError) as error:  # absl's ValueError is of --noquiet=1
        raise InputError(str(error)) from error
    if len(rest) > 1:
        raise InputError(
            f"{rest[1]} is not a flag; flags are written --name=value; see --help"
        )


class ListParser(flags.ArgumentParser):
    """Parses comma-separated items into a tuple."""

    def __init__(
        self, parse_item: Callable[[Any], Any], may_be_empty: bool = False
    ) -> None:
        self._parse_item = parse_item
        self._may_be_empty = may_be_empty

    def parse(self, argument: Any) -> tuple[Any, ...]:
        if isinstance(argument, str):  # not the default
            argument = [word for word in map(str.strip, argument.split(",")) if word]
        if not argument and not self._may_be_empty:
            raise ValueError("must not be empty")
        return tuple(map(self._parse_item, argument))


class OrNoneParser(flags.ArgumentParser):
    """Parses what another parser does, or none, which programs that tune send."""

    def __init__(self, parser: flags.ArgumentParser) -> None:
        self._parser = parser
        self.syntactic_help = f"{parser.syntactic_help} or none"

    def parse(self, argument: Any) -> Any:
        return None if argument.lower() == "none" else self._parser.parse(argument)


class PathParser(flags.ArgumentParser):
    """Expands `~` in a path, which shells do not in `--name=~/file`."""

    def parse(self, argument: str) -> str:
        if not argument:  # as of an unset shell variable; it would become "."
            raise ValueError("a path; give one, or leave the flag out")
        return str(Path(argument).expanduser())
