"""Atomic file writes and line appends."""

import contextlib
import fcntl
import hashlib
import os
import platform
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import filelock

from mnist_jax.errors import InputError

_WAIT = 60  # seconds to wait for another process that appends to the same file


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Returns a path with `~` or `~name` at its start replaced by that home folder.

    Raises:
        InputError: that folder is not known. Otherwise a folder `~` would be created,
            and whoever removes that may remove a home.
    """
    known = os.environ.get("HOME") != ""  # which would make ~/runs /runs
    with contextlib.suppress(RuntimeError):
        if known or not str(path).startswith("~"):
            return Path(path).expanduser()
    raise InputError(
        f"the home folder in {path} is not known; set HOME, or give the whole path"
    )


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file atomically: readers and crashes never see a partial file.

    Raises:
        OSError: the file cannot be written; an existing file is left unchanged.
    """
    # Not by `tempfile`, whose files are private whatever the umask.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    file = open(temporary, "xb")
    try:
        with file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink()
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
        with contextlib.ExitStack() as stack:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            stack.callback(os.close, descriptor)
            if not _flock(descriptor, fcntl.LOCK_EX):
                held = path.with_name(f".{path.name}.held")
                stack.enter_context(filelock.SoftFileLock(held, timeout=_WAIT))
            _append(descriptor, line.encode() + b"\n")
    except filelock.Timeout as error:
        raise InputError(
            f"cannot append to {path}: for {_WAIT} seconds {_holder(held)} has been "
            "appending to it; wait until it ends"
        ) from error
    except OSError as error:
        raise write_error(path, error) from error


def _flock(file: int | IO[bytes], operation: int) -> bool:
    """Locks an open file until it is closed; returns False if that is impossible.

    Some network file systems cannot lock, and differ in the error. There a file that
    exists while the lock is held stands in for it.
    """
    try:
        fcntl.flock(file, operation)
    except OSError:
        return False
    return True


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

    Waits for any `append_line` in progress, if the file system can lock.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            _flock(file, fcntl.LOCK_SH)
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
    on_wait: Callable[[str], None],
    check_stopped: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Holds a lock file within the context, waiting for it if necessary.

    The system releases the lock when the process ends, even if it is killed. On a file
    system that cannot lock, the existence of a file `.held` is the lock; if its process
    was killed, the next one on the same host removes it.

    Args:
        path: lock file; it and its folder are created if they do not exist.
        on_wait: called once if another process holds the lock, with words for it, such
            as "another process (pid 123)".
        check_stopped: called ten times a second while waiting; raises to stop waiting.

    Raises:
        InputError: the file cannot be created or locked.
    """
    make_folder(path.parent)
    lock: filelock.BaseFileLock = filelock.FileLock(path, fallback_to_soft=False)
    waits = False
    while True:
        try:
            lock.acquire(blocking=False)
            break
        except filelock.Timeout:
            if not waits:
                on_wait(_holder(Path(lock.lock_file)))
            waits = True
            check_stopped()
            time.sleep(0.1)
        except OSError as error:
            if error.filename is not None:  # from opening it, not from `flock`
                raise write_error(path, error) from error
            lock = filelock.SoftFileLock(path.with_name(f"{path.name}.held"))
    try:
        if isinstance(lock, filelock.FileLock):
            with contextlib.suppress(OSError):  # it is only for messages
                path.write_text(f"{os.getpid()}\n{platform.node()}\n")
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """Returns words for the process that holds a lock, from the file's two lines."""
    try:
        pid, host = path.read_text().split()[:2]
    except (OSError, ValueError):
        pid = host = ""
    here, facts = host == platform.node(), []
    if pid:
        facts.append(f"pid {pid}" if here else f"pid {pid} on {host}")
    if path.suffix == ".held" and not here:
        facts.append(f"delete {path} if it has ended")
    return f"another process ({'; '.join(facts)})" if facts else "another process"


def make_folder(path: Path) -> None:
    """Creates a folder and its parents, and checks that files can be created in it.

    Raises:
        InputError: the folder, or a file in it, cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise write_error(path, error) from error


def check_append(path: Path) -> None:
    """Checks that `append_line` can write to a file, and creates its folder.

    Raises:
        InputError: it cannot.
    """
    make_folder(path.parent)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.close(os.open(path, os.O_RDWR | os.O_APPEND))
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> InputError:
    """Returns the error to raise when a file cannot be written."""
    return InputError(
        f"cannot write {path}: {error.strerror}; give a writable path on a disk with "
        "free space"
    )
