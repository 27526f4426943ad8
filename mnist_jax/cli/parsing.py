"""Parses flags, those of flag files included."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from absl import flags

from mnist_jax.errors import InputError

Word = tuple[str, Path | None]  # and the flag file that has it
_WORDS: list[Word] = []  # of the program's command line


def parse_flags(argv: Sequence[str], values: flags.FlagValues = flags.FLAGS) -> None:
    """Parses the flags of a command line, the program's name first.

    A flag overrides the same flag before it, and the one of a `--preset`.

    Args:
        argv: the command line.
        values: the flags that are defined, which get the values.

    Raises:
        InputError: a flag is unknown, lacks a value or has an invalid one, a flag file
            is not text or includes itself, or an argument is not a flag.
        OSError: a flag file cannot be read.
    """
    words = list(_expand_files(argv[1:]))
    try:
        rest = values([argv[0], *(word for word, _ in words)])
        if "preset" in values and (preset := values["preset"].value):
            words = [*_expand_files([f"--flagfile={preset}"]), *words]
            rest = values([argv[0], *(word for word, _ in words)])
    except (flags.Error, ValueError) as error:  # absl's ValueError is of --noquiet=1
        raise InputError(name_flag_file(str(error), words)) from error
    if len(rest) > 1:
        text = f"{rest[1]} is not a flag; flags are written --name=value; see --help"
        raise InputError(name_flag_file(text, words))
    if values is flags.FLAGS:
        _WORDS[:] = words


def _expand_files(words: Iterable[str], *files: Path) -> Iterator[Word]:
    """Yields the words of a command line, for `--flagfile` those of the file.

    Not left to absl, which keeps a byte order mark, trains with all defaults after a
    file that includes only itself, and names no file in its errors.

    Args:
        words: of the command line or a file.
        *files: the file that has them, and those that include it, outermost first.
    """
    words = iter(words)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in ("--flagfile", "-flagfile"):
            yield word, files[-1] if files else None
            continue
        file = Path(value if equals else next(words, "")).expanduser()
        if file.resolve() in map(Path.resolve, files):
            raise InputError(f"--flagfile={file} includes itself; remove that line")
        try:
            lines = map(str.strip, file.read_text("utf-8-sig").splitlines())
        except UnicodeDecodeError as error:
            raise InputError(
                f"--flagfile={file} is not UTF-8 text ({error}); write a flag per line"
            ) from error
        yield from _expand_files(
            [line for line in lines if line and not line.startswith(("#", "//"))],
            *(*files, file),
        )


def name_flag_file(text: str, words: Sequence[Word] = _WORDS) -> str:
    """Returns an error's text, after the flag file with the word that it is about."""
    first = re.match(r"--(?:no)?(\w+)", text)
    for word, file in reversed(words):
        name = word.lstrip("-").partition("=")[0]
        if word in text or f"'{name}'" in text or (first and name == first[1]):
            return f"{file}: {text}" if file else text
    return text
