"""The per-user cache of decoded arrays, in `.npz` files."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging

from mnist_jax.data.reader import Arrays
from mnist_jax.records.files import write_file


def cache_dir() -> Path:
    """Returns the folder of all caches; it may not exist yet."""
    parent = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.environ.get("MNIST_JAX_CACHE_DIR") or f"{parent}/mnist_jax"
    return Path(folder).expanduser()


def load_or_build(key: str, build: Callable[[], Arrays]) -> Arrays:
    """Returns the cached arrays of a key; builds them if missing or damaged."""
    path = cache_dir() / "arrays" / f"{key}.npz"
    if path.exists():
        try:
            with open(path, "rb") as file, np.load(file) as archive:
                return dict(archive)  # verifies the checksums of the archive
        except Exception as error:  # NumPy's and zipfile's parsers raise many types
            logging.warning("%s is damaged (%s); rebuilding it", path, error)
    arrays, buffer = build(), io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, buffer.getvalue())
    except OSError as error:
        logging.warning("cannot cache %s; set MNIST_JAX_CACHE_DIR (%s)", path, error)
    return arrays
