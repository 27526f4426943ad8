"""Parses a program's flags; what is wrong with them is one sentence."""

import difflib
import re

from absl import flags

from mnist_jax.errors import InputError

FLAGS = flags.FLAGS


def parse_flags(argv: list[str]) -> None:
    """Parses the flags of a command line, the program's name first.

    Flags on the command line override those of a `--preset`.

    Raises:
        InputError: a flag is unknown, lacks a value or has an invalid one, a flag file
            cannot be read, or an argument is not a flag or not text.
    """
    for argument in argv:
        # Python reads bytes that are not UTF-8 as surrogates, which neither JAX nor
        # pyarrow takes, some of them only after training.
        if re.search("[\ud800-\udfff]", argument):
            raise InputError(f"{argument} is not UTF-8 text; rename the file or folder")
    try:
        rest = FLAGS(argv)
        if "preset" in FLAGS and FLAGS.preset:
            rest = FLAGS([argv[0], f"--flagfile={FLAGS.preset}", *argv[1:]])
    except SystemExit:  # --help, to which absl gives status 1
        raise SystemExit(0) from None
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        near = difflib.get_close_matches(name, FLAGS)
        hint = f"did you mean --{' or --'.join(near)}? " if near else ""
        raise InputError(f"unknown flag --{name}; {hint}see --help") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"--flagfile: the file is not UTF-8 text ({error}); write one flag per line"
        ) from error
    except flags.CantOpenFlagFileError as error:
        cause = error.__context__
        assert isinstance(cause, OSError)
        raise InputError(
            f"--flagfile={cause.filename}: {cause.strerror}; give a text file with one "
            "flag per line"
        ) from error
    # absl raises ValueError for --noquiet=1.
    except (flags.Error, ValueError) as error:
        raise InputError(_what_is_wrong(error)) from error
    if len(rest) > 1:
        raise InputError(
            f"unexpected argument {rest[1]!r}; flags are written --name=value; see "
            "--help"
        )


def _what_is_wrong(error: Exception) -> str:
    """Returns a sentence for an error that absl raised while parsing."""
    text = str(error)
    match = re.match(r"flag --(\w+)=", text)
    if not match:
        return f"{text[0].lower()}{text[1:].rstrip('.')}; see --help"
    name = match[1]
    if text.startswith(f"flag --{name}=None: "):
        return f"--{name} is missing; give it a value; see --help"
    flag, cause = FLAGS[name], str(error.__context__)
    if choices := getattr(flag.parser, "enum_values", None):
        allowed = f"one of {', '.join(choices)}"
    elif flag.boolean:
        allowed = "true or false"
    else:
        allowed = flag.parser.syntactic_help or cause
    given = text.removeprefix("flag ").removesuffix(f": {cause}")
    return f"{given} must be {allowed}"
