"""Atomic file writes, and locks between processes."""

import contextlib
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


def check_append(path: Path) -> None:
    """Creates the file of `append_jsonl` and its folder, before hours of work."""
    path.parent.mkdir(parents=True, exist_ok=True)
    open(path, "ab").close()


@contextlib.contextmanager
def hold_lock(path: Path, refusal: str = "") -> Iterator[None]:
    """Holds a lock file within the context.

    If it is held elsewhere, waits for it, or raises InputError with a `refusal`. The
    system releases the lock when the process ends, even if it is killed.
    """
    try:
        held = filelock.FileLock(path).acquire(timeout=0.1 if refusal else -1)
    except filelock.Timeout:
        raise InputError(refusal) from None
    with held:
        yield
