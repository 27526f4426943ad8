"""Atomic file writes, line appends and locks between processes."""

import contextlib
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock


def write_file(path: Path, content: bytes | str) -> None:
    """Writes a file atomically: readers and crashes never see a partial file.

    Raises:
        OSError: the file cannot be written; an existing file is left unchanged.
    """
    # Not by `tempfile`, whose files are private whatever the umask.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # that of a full disk has none
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def add_checksum(content: bytes) -> bytes:
    """Returns the content followed by its sha256, for `verify_checksum`."""
    return content + hashlib.sha256(content).digest()


def verify_checksum(data: bytes) -> memoryview:
    """Returns the content passed to `add_checksum`.

    Raises:
        ValueError: the content or its sha256 is damaged.
    """
    content, digest = memoryview(data)[:-32], data[-32:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("it is damaged (its sha256 does not match its content)")
    return content


def append_line(path: Path, line: str) -> None:
    """Appends a line atomically; several processes may append at the same time.

    A process killed during its write leaves a partial line. It is kept, and the next
    line starts on a new one.

    Args:
        path: the file, created if it does not exist.
        line: text without a newline.

    Raises:
        OSError: the line cannot be written; the file is left unchanged.
    """
    content = line.encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # until the file is closed
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            content = b"\n" + content
        try:
            while content:  # a write may be partial, as on a full disk
                content = content[os.write(descriptor, content) :]
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, size)
            raise
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def check_append(path: Path) -> None:
    """Creates the file of `append_line` and its folder, if they do not exist.

    Raises:
        OSError: they cannot be written, which a program finds out before it works.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    open(path, "ab").close()


def read_lines(path: Path) -> list[bytes]:
    """Returns a file's lines, or none if it does not exist."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)  # waits for an `append_line`
            return file.readlines()
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def hold_lock(
    path: Path,
    on_wait: Callable[[], None] = lambda: None,
    check_stopped: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Holds a lock file within the context, waiting for it if necessary.

    The system releases the lock when the process ends, even if it is killed.

    Args:
        path: lock file; it and its folder are created if they do not exist.
        on_wait: called once if another process holds the lock.
        check_stopped: called ten times a second while waiting; raises to stop waiting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    with contextlib.suppress(filelock.Timeout):
        lock.acquire(blocking=False)
    if not lock.is_locked:
        on_wait()
    while not lock.is_locked:
        check_stopped()
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=0.1)
    try:
        yield
    finally:
        lock.release()
