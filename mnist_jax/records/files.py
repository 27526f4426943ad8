"""Atomic file writes, line appends and locks between processes."""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import filelock

from mnist_jax.errors import InputError


def write_file(path: Path, content: bytes | str) -> None:
    """Writes a file atomically: readers and crashes never see a partial file."""
    # Not by `tempfile`, whose files are private whatever the umask.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Appends a line; several processes may append at the same time.

    A process killed during its write, or a full disk, leaves a partial line. It is
    kept, and the next line starts on a new one.
    """
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        size = os.fstat(file.fileno()).st_size
        torn = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write(b"\n" * bool(torn) + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def check_append(path: Path) -> None:
    """Creates the file of `append_line` and its folder, before hours of work."""
    path.parent.mkdir(parents=True, exist_ok=True)
    open(path, "ab").close()


def read_lines(path: Path) -> list[bytes]:
    """Returns a file's lines, or none if it does not exist."""
    if not path.exists():
        return []
    with open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # waits for an `append_line`
        return file.readlines()


@contextlib.contextmanager
def hold_lock(path: Path, refusal: str = "") -> Iterator[None]:
    """Holds a lock file within the context.

    If it is held elsewhere, waits for it, or raises InputError with a `refusal`. The
    system releases the lock when the process ends, even if it is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        held = filelock.FileLock(path).acquire(timeout=0.1 if refusal else -1)
    except filelock.Timeout:
        raise InputError(refusal) from None
    with held:
        yield
