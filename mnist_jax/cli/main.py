"""What every program does first: JAX's settings, signals, error messages."""

import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags, logging

from mnist_jax.cli.flags import PLATFORMS
from mnist_jax.errors import InputError, Stopped
from mnist_jax.records.environment import available_cores
from mnist_jax.training.compile_cache import use_compile_cache

FLAGS = flags.FLAGS


def start_jax() -> None:
    """Chooses the platform, makes a host device per core of a CPU, sets up the cache.

    Raises:
        InputError: JAX finds no such platform.
    """
    # What imports made stays: to look through it in every collection would take a tenth
    # of the time that tracing and lowering take.
    gc.freeze()
    if FLAGS.platform:
        jax.config.update("jax_platforms", PLATFORMS[FLAGS.platform])
    if "compile_cache" in FLAGS and FLAGS.compile_cache == "on":
        use_compile_cache()
    wanted = FLAGS.cpu_devices if "cpu_devices" in FLAGS else None
    jax.config.update("jax_num_cpu_devices", wanted or available_cores())
    try:
        jax.devices()
    # Without a GPU an assertion of JAX's own fails, which says nothing.
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or "there is none").splitlines()[0]
        asked = f"--platform={FLAGS.platform}"
        if not FLAGS.platform:
            asked = f"JAX_PLATFORMS={jax.config.values['jax_platforms']}"
        raise InputError(
            f"{asked}: JAX finds no such device ({reason}); install its support "
            "(README, 'GPU and TPU') or leave the setting out"
        ) from error


def stop_between_chunks(message: str) -> Callable[[], None]:
    """Lets the first SIGINT or SIGTERM wait until the program can stop in good order.

    A second one ends it at once.

    Args:
        message: what then becomes of the work so far, and how to resume.

    Returns:
        A function to call where it can: it raises `Stopped` if a signal has come.
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
    """Parses the flags and runs a program; bad input ends it with one sentence.

    Args:
        main: the program, without arguments. Its module's docstring and flags are what
            `--help` shows.
    """
    if main.__module__ != "__main__":  # a console script, or the program is a folder
        sys.argv[0] = main.__module__
        sys.modules["__main__"].__doc__ = sys.modules[main.__module__].__doc__

    def checked(argv: Sequence[str]) -> None:
        logging.set_verbosity(logging.WARNING)  # JAX logs every backend it misses
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
            # Such as standard output on a full disk. What is left of it goes nowhere,
            # lest the interpreter fails in writing it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print(
                f"error: the system refused: {error}; mend that and run again",
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
