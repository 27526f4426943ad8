"""SIGINT and SIGTERM: what a program does between its first import and its end.

Handlers that raise are not enough. Python drops an exception that is raised within a
callback of the garbage collector, where JAX has one, and ending the interpreter while
XLA compiles in other threads may crash. So the signal is remembered as well, and the
process ends without Python's clean-up.
"""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from traceback import walk_tb
from types import TracebackType
from typing import Any, NoReturn

from mnist_jax.errors import Stopped

_received: list[int] = []


def end_during_imports() -> None:
    """Lets a signal end the process at once, if a program of this project starts it.

    So does a variable that JAX refuses on import, with one sentence. The packages of
    the programs call this before any other import. Until `run_program` there is nothing
    to clean up, and a traceback through imports would help nobody.
    """
    if sys.argv[0] == "-m" or os.path.basename(sys.argv[0]).startswith("mnist-jax-"):
        _handle(lambda number, _: os._exit(128 + number))
        sys.excepthook = _report_error


def _report_error(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Prints an uncaught error, as one sentence if it is about a setting of JAX."""
    modules = [frame.f_globals.get("__name__") for frame, _ in walk_tb(trace)]
    setting = re.search(r"jax_\w+", str(error), re.IGNORECASE)
    if setting and modules[-1:] == ["jax._src.config"]:
        name = setting[0].upper()
        advice = f"unset {name} or give it a value that JAX takes"
        print(f"error: {error}; {advice}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def interrupt_at_signals() -> None:
    """Raises KeyboardInterrupt at the first signal; a second one ends the process."""

    def interrupt(number: int, _: Any) -> None:
        _remember(number)
        raise KeyboardInterrupt

    _handle(interrupt)


@contextlib.contextmanager
def stop_between_chunks(message: str) -> Iterator[Callable[[], None]]:
    """Defers the first signal until the program can stop cleanly.

    A second signal ends the program immediately.

    Args:
        message: printed when the program stops: what is kept, how to resume.

    Yields:
        A function to call between chunks; it raises `Stopped` after a signal, in all
        processes of a job at the same chunk.
    """

    # Not at the top: `end_during_imports` must work before JAX is imported.
    from mnist_jax.training import cluster

    def check() -> None:
        signals = cluster.exchange("stop", (_received or [0])[0])
        if not _received:  # another process has
            _received.extend(filter(None, signals))
        if any(signals):
            raise Stopped(_received[0], message)

    _handle(lambda number, _: _remember(number))
    try:
        yield check
    finally:
        interrupt_at_signals()


def exit_after_signal() -> NoReturn:
    """Ends the process with the status that shells report for the first signal."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(128 + (_received or [signal.SIGINT])[0])


def _handle(handler: Any) -> None:
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)


def _remember(number: int) -> None:
    """Notes the first signal; the system ends the process at the second."""
    _received.append(number)
    _handle(signal.SIG_DFL)
