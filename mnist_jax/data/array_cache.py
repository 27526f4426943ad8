"""The per-user cache of decoded arrays, in `.npz` files."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging

from mnist_jax.data.reader import Arrays
from mnist_jax.errors import InputError
from mnist_jax.records.files import write_file


def cache_dir() -> Path:
    """Returns the folder of all caches; it may not exist yet."""
    if folder := os.environ.get("MNIST_JAX_CACHE_DIR"):
        return Path(folder).expanduser()
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(parent).expanduser() / "mnist_jax"


def load_or_build(key: str, build: Callable[[], Arrays]) -> Arrays:
    """Returns the cached arrays of a key, or builds them."""
    arrays = read_entry(key)
    if arrays is None:
        arrays = build()
        write_entry(key, arrays)
    return arrays


def read_entry(key: str) -> Arrays | None:
    """Returns the arrays of a cache entry, or None if it is missing or damaged."""
    path = _path(key)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            return dict(archive)  # verifies the checksums of the archive
    except OSError:
        return None
    except Exception as error:  # NumPy's and zipfile's parsers raise many types
        logging.warning("%s is damaged (%s); rebuilding it", path, error)
        return None


def write_entry(key: str, arrays: Arrays) -> None:
    """Writes a cache entry, or logs a warning if the cache is not writable."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    try:
        _path(key).parent.mkdir(parents=True, exist_ok=True)
        write_file(_path(key), buffer.getvalue())
    except (OSError, InputError) as error:
        logging.warning(
            "cannot write to the cache folder %s (%s); set MNIST_JAX_CACHE_DIR to a"
            " writable folder to make later starts faster",
            cache_dir(),
            error,
        )


def _path(key: str) -> Path:
    return cache_dir() / "arrays" / f"{key}.npz"
