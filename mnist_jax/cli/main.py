"""Start-up, signal handling and error messages of the programs."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from mnist_jax.errors import InputError, Stopped
from mnist_jax.training.setup import setup

FLAGS = flags.FLAGS


def start_jax() -> None:
    """Sets JAX up from the flags; raises as `setup`."""
    # Objects created by imports stay alive. Scanning them in every collection would
    # take a tenth of the time of tracing and lowering.
    gc.freeze()
    setup(
        FLAGS.platform,
        (FLAGS.cpu_devices if "cpu_devices" in FLAGS else None) or 0,
        "compile_cache" in FLAGS and FLAGS.compile_cache == "on",
    )


def stop_between_chunks(message: str) -> Callable[[], None]:
    """Defers the first SIGINT or SIGTERM until the program can stop cleanly.

    A second signal ends the program immediately.

    Args:
        message: printed when the program stops: what is kept, how to resume.

    Returns:
        A function to call between chunks; it raises `Stopped` after a signal.
    """
    received: list[int] = []

    def remember(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, remember)
    signal.signal(signal.SIGTERM, remember)

    def check() -> None:
        if received:
            raise Stopped(received[0], message)

    return check


def run_program(main: Callable[[], None]) -> None:
    """Parses the flags and runs a program; bad input exits with a one-line error.

    Args:
        main: function without arguments. `--help` shows its module's docstring and
            flags.
    """
    if main.__module__ != "__main__":  # a console script or a package
        sys.argv[0] = main.__module__
        sys.modules["__main__"].__doc__ = sys.modules[main.__module__].__doc__

    def checked(argv: Sequence[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # JAX logs every backend that is missing
        try:
            if len(argv) > 1:
                raise InputError(
                    f"unexpected argument {argv[1]!r}; flags are written --name=value; "
                    "see --help"
                )
            main()
            sys.stdout.flush()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        except OSError as error:
            # For example standard output on a full disk. Discard what is buffered, or
            # the interpreter fails again when it flushes at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print(
                f"error: {error}; fix this and run the command again",
                file=sys.stderr,
            )
            sys.exit(1)
        except Stopped as stopped:
            print(f"stopped: {stopped}", file=sys.stderr)
            sys.exit(128 + stopped.number)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(130)

    app.run(checked)
