"""Atomic file writes and line appends."""

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from mnist_jax.errors import InputError


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file atomically: readers and crashes never see a partial file.

    Raises:
        OSError: the file cannot be written; an existing file is left unchanged.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's file is private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_file(path: Path, content: bytes | str) -> None:
    """Writes bytes or text with `replace_file`.

    Raises:
        InputError: the file cannot be written; an existing file is left unchanged.
    """
    try:
        replace_file(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise write_error(path, error) from error


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
        InputError: the line cannot be written; the file is left unchanged.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            # Released when the file is closed, also by the end of the process.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            _append(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise write_error(path, error) from error


def _append(descriptor: int, content: bytes) -> None:
    """Appends to a file that this process has locked."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        content = b"\n" + content
    rest = memoryview(content)
    try:
        while rest:  # a write may be partial, as on a full disk
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except BaseException:
        os.ftruncate(descriptor, size)
        raise


def read_lines(path: Path) -> list[bytes]:
    """Returns a file's lines, or none if it does not exist.

    Waits for any `append_line` in progress.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            return file.readlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; make it readable or move it away"
        ) from error


@contextlib.contextmanager
def hold_lock(
    path: Path,
    on_wait: Callable[[], None],
    check_stopped: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Holds a lock file within the context, waiting for it if necessary.

    The system releases the lock when the process ends, even if it is killed.

    Args:
        path: lock file; it and its folder are created if they do not exist.
        on_wait: called once if another process holds the lock.
        check_stopped: called ten times a second while waiting; raises to stop waiting.

    Raises:
        InputError: the file cannot be created or locked.
    """
    make_folder(path.parent)
    lock = filelock.FileLock(path)
    waits = False
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except filelock.Timeout:
            if not waits:
                on_wait()
            waits = True
            check_stopped()
            time.sleep(0.1)
        except OSError as error:
            raise write_error(path, error) from error
    try:
        yield
    finally:
        lock.release()


def make_folder(path: Path) -> None:
    """Creates a folder and its parents.

    Raises:
        InputError: the folder cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> InputError:
    """Returns the error to raise when a file cannot be written."""
    return InputError(
        f"cannot write {path}: {error.strerror}; give a writable path on a disk with "
        "free space"
    )
