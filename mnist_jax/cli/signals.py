"""The signals that stop a program.

Handlers that raise are not enough. Python drops an exception that is raised within a
callback of the garbage collector, where JAX has one. So the signal is remembered too.
"""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

from mnist_jax.errors import Stopped
from mnist_jax.training import cluster

# A terminal that is closed sends SIGHUP, Slurm SIGUSR1 or SIGXCPU before the time ends.
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGXCPU]
if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # by nohup
    SIGNALS.append(signal.SIGHUP)
_received: list[int] = []


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


def exit_status(default: int) -> int:
    """Returns the status that shells report for the first signal, if there was one."""
    return 128 + _received[0] if _received else default


def _handle(handler: Any) -> None:
    for number in SIGNALS:
        signal.signal(number, handler)


def _remember(number: int) -> None:
    """Notes the first signal; the system ends the process at the second."""
    _received.append(number)
    _handle(signal.SIG_DFL)
