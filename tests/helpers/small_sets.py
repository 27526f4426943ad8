"""Small datasets in the format of the published ones, and their downloaders."""

import gzip
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mnist_jax.data.published import FILES
from mnist_jax.data.types import Dataset
from mnist_jax.testing import assert_trees_close


def write_idx_set(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    *,
    prefix: str = "",
    test: str = "t10k",
    separator: str = "-idx",
    compress: Callable[[bytes], bytes] = gzip.compress,
) -> None:
    """Writes the arrays of an `.npz` as four IDX files, under any of their names."""
    folder.mkdir(parents=True, exist_ok=True)
    codes = {"uint8": 0x08, "int32": 0x0C, "float32": 0x0D}
    for name, array in arrays.items():
        kind = "images" if name.startswith("x") else "labels"
        part = {"train": "train", "val": "val"}.get(name[2:], test)
        item = "ubyte" if array.dtype == np.uint8 or kind == "images" else "int"
        dims = array.ndim
        ending = ".gz" if compress is gzip.compress else ""
        header = struct.pack(
            f">HBB{dims}I", 0, codes[array.dtype.name], dims, *array.shape
        )
        content = header + array.astype(array.dtype.newbyteorder(">")).tobytes()
        file = f"{prefix}{part}-{kind}{separator}{dims}-{item}{ending}"
        (folder / file).write_bytes(compress(content))


def no_call(name: str, folder: Path) -> None:
    """Fails the test, which must not download anything."""
    raise AssertionError("a download was attempted")


def copy_from(
    folders: Mapping[str, Path], calls: list[str] | None = None
) -> Callable[[str, Path], None]:
    """Returns a downloader that copies the small files."""

    def download(name: str, folder: Path) -> None:
        for file in FILES.values():
            shutil.copy(folders[name] / file, folder / file)
        if calls is not None:
            calls.append(name)

    return download


def files_below(folder: Path) -> list[Path]:
    """Returns the files in a folder and below, without lock files."""
    return [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"]


def assert_equal_sets(one: Dataset, other: Dataset) -> None:
    """Compares two datasets, arrays included."""
    for name in ("name", "checksum", "note"):
        assert getattr(one, name) == getattr(other, name)
    assert_trees_close((one.train, one.test), (other.train, other.test), rtol=0)
