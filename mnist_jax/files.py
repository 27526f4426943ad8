"""Files that are written whole or not at all."""

import os
import tempfile
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
