"""Standard output and error that never raise, so that no result is lost to them."""

import io
import os
import sys
from typing import Any


class _Output(io.FileIO):
    """A standard stream that discards what is written after its first error.

    Attributes:
        error: the first error, such as a full disk or a reader that has gone.
    """

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Writes bytes; returns how many, also if they are discarded."""
        if self.error is None:
            try:
                return super().write(data) or 0
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes


def protect_streams() -> None:
    """Replaces `sys.stdout` and `sys.stderr` by streams whose writes cannot fail.

    They escape characters that their encoding lacks. Closed streams discard what is
    written.
    """
    # Otherwise the next file that is opened takes the number of a closed stream, and
    # what libraries print ends up in it.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed when Python started
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))
        elif stream is getattr(sys, f"__{name}__"):  # not replaced by a test or an IDE
            stream.flush()
            setattr(sys, name, _wrap(stream, stream.fileno()))


def _wrap(stream: Any, descriptor: int) -> io.TextIOWrapper:
    """Returns a stream like another that writes to a descriptor and never raises."""
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(descriptor, "w", closefd=False)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )


def keep_stdout(keep: bool) -> None:
    """Discards what libraries print past Python, such as gloo's connections.

    Args:
        keep: whether to keep what Python prints.
    """
    sys.stdout.flush()
    kept, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    sys.stdout = _wrap(sys.stdout, kept if keep else null)


def output_error() -> OSError | None:
    """Returns why standard output could not be written in full, or None.

    A reader that has gone, as in `| head -1`, is not an error: it has what it wants.
    """
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    error = raw.error if isinstance(raw, _Output) else None
    return None if isinstance(error, BrokenPipeError) else error
