"""Files and lines that are written whole or not at all."""

import contextlib
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mnist_jax.errors import InputError


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file at one stroke: no reader and no crash sees half of it.

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
        raise cannot_write(path, error) from error


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
        raise cannot_write(path, error) from error


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

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            return file.readlines()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; make it readable or move it away"
        ) from error


@contextlib.contextmanager
def lock_folder(
    folder: Path,
    waiting: Callable[[], None],
    check_stopped: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Makes a folder and keeps it for this process while the context lasts.

    Who has it may remove it: the next one makes it anew.

    Args:
        folder: what is locked for all who ask by this function.
        waiting: called once if another process has it.
        check_stopped: called ten times a second meanwhile; it raises to end the wait.

    Raises:
        OSError: it cannot be made or locked.
    """
    told = False
    while (descriptor := _try_lock(folder)) is None:
        if not told:
            waiting()
        told = True
        check_stopped()
        time.sleep(0.1)
    try:
        yield
    finally:
        os.close(descriptor)


def _try_lock(folder: Path) -> int | None:
    """Makes, opens and locks a folder; returns None if another process has it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        if folder.is_symlink():
            raise
        return None  # another process has just removed it
    locked = False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Not one that was removed before it was locked.
        locked = os.path.samestat(os.fstat(descriptor), os.stat(folder))
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        if not locked:
            os.close(descriptor)
    return descriptor if locked else None


def make_folder(path: Path) -> None:
    """Makes a folder with its parents.

    Raises:
        InputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> InputError:
    """Returns the error that says so, and what to do."""
    return InputError(
        f"cannot write {path}: {error.strerror}; give a place on a disk with room that "
        "this user may write to"
    )


def code_digest(more: Iterable[Path] = ()) -> str:
    """Returns a digest of the package's code, changed or committed.

    Args:
        more: files of which it is, too.
    """
    digest = hashlib.sha256()
    for file in (*sorted(Path(__file__).parents[1].rglob("*.py")), *more):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]
