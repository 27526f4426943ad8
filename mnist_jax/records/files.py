"""Files and lines that are written whole or not at all."""

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
    """Writes a file atomically: no reader and no crash sees half of it.

    Raises:
        OSError: it cannot be written; an earlier file is then still there.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's is for the user alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_file(path: Path, content: bytes | str) -> None:
    """Writes a result as `replace_file` does.

    Raises:
        InputError: it cannot be written; an earlier file is then still there.
    """
    try:
        replace_file(path, content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise write_error(path, error) from error


def add_checksum(content: bytes) -> bytes:
    """Returns content followed by its sha256, for `verify_checksum` to verify."""
    return content + hashlib.sha256(content).digest()


def verify_checksum(sealed: bytes) -> memoryview:
    """Returns the content that `add_checksum` was given.

    Raises:
        ValueError: it is damaged.
    """
    content, digest = memoryview(sealed)[:-32], sealed[-32:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("it is damaged, its sha256 is not the one it ends with")
    return content


def append_line(path: Path, line: str) -> None:
    """Appends a line whole or not at all; many processes may do so at once.

    Where a process was killed within its write, the file ends in half a line, which
    stays as it is: the new one begins below it.

    Args:
        path: the file, made if there is none.
        line: the text, without a newline in it.

    Raises:
        InputError: it cannot be written; the file is then as it was.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            # Released by closing the file, hence by the death of the process too.
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            _append(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise write_error(path, error) from error


def _append(descriptor: int, content: bytes) -> None:
    """Appends to a file that no other process changes meanwhile."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        content = b"\n" + content
    rest = memoryview(content)
    try:
        while rest:  # a write may stop half-way, as where the disk gets full
            rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except BaseException:
        os.ftruncate(descriptor, size)
        raise


def read_lines(path: Path) -> list[bytes]:
    """Returns a file's lines, none of which `append_line` is still writing.

    A file that is not there has none.

    Raises:
        InputError: it cannot be read.
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
    """Holds a lock file for this process while the context lasts.

    The system releases it when the process ends, however it ends.

    Args:
        path: of the lock file; it and its folder are made if there are none.
        on_wait: called once if another process holds it.
        check_stopped: called ten times a second meanwhile; it raises to end the wait.

    Raises:
        InputError: it cannot be made or locked.
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
    """Makes a folder with its parents.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> InputError:
    """Returns the error that says so, and what to do."""
    return InputError(
        f"cannot write {path}: {error.strerror}; give a place on a disk with room that "
        "this user may write to"
    )
