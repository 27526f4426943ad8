"""Finds or downloads datasets, and verifies them.

Sources, in this order: a folder of files, the cache, a download, the small digits.
"""

import hashlib
import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from absl import logging

from mnist_jax.config import DATASETS
from mnist_jax.data.cache import load_or_build
from mnist_jax.data.digits import load_digits
from mnist_jax.data.download import DownloadError, download_files
from mnist_jax.data.published import FILES, SETS
from mnist_jax.data.reader import (
    NEEDED,
    Arrays,
    Files,
    content_sha256,
    find_sets,
    read_arrays,
)
from mnist_jax.data.types import Dataset, Split
from mnist_jax.errors import InputError

FALLBACK_NOTE = (
    "NOT MNIST: these are scikit-learn's 1,797 handwritten digits, resized from 8x8 to"
    " 28x28 pixels, used because MNIST was not found and could not be downloaded; for"
    " MNIST set --data_dir or MNIST_JAX_DATA_DIR to a folder with its four files or"
    " allow access to storage.googleapis.com."
)
_VARIABLE = "MNIST_JAX_DATA_DIR"


def load_dataset(
    name: str = "auto", data_dir: str | os.PathLike[str] | None = None
) -> Dataset:
    """Loads a dataset with its official split and no validation set.

    The files are read from `data_dir`, by default the folder `MNIST_JAX_DATA_DIR`. The
    sha256 of their content is verified each time. If that folder lacks the set, it
    comes from the cache or a download. docs/command_line.md lists the forms that are
    read. Nothing is written outside the cache.

    Args:
        name: one of `DATASETS`. "idx" is any set in `data_dir`. "auto" is MNIST if
            available, otherwise the digits with a `note`, unless a data folder is set.
            "digits" needs no files and ignores `data_dir`.
        data_dir: a folder that must hold the files; None or empty to search elsewhere.

    Returns:
        The dataset: `[60000,28,28]` and `[10000,28,28]` images; 1,437 and 360 for the
        digits; any size and number for "idx".
    """
    if name not in DATASETS:
        raise InputError(f"--dataset must be one of {', '.join(DATASETS)}; got {name}")
    given = data_dir or os.environ.get(_VARIABLE)
    folder = Path(given).expanduser() if given else None
    if name == "digits":
        dataset = load_digits()
    elif name == "idx":
        if folder is None:
            raise InputError(
                "--dataset=idx needs the folder of its files; give it by --data_dir or "
                f"{_VARIABLE}"
            )
        dataset = load_any(folder)
    else:
        try:
            published = "mnist" if name == "auto" else name
            dataset = _load_published(published, folder, bool(data_dir))
        except DownloadError as error:
            if name != "auto" or folder is not None:
                raise
            logging.warning("%s; using scikit-learn's digits instead", error)
            dataset = load_digits(FALLBACK_NOTE)
    if dataset.note:
        logging.warning(dataset.note)
    return dataset


def load_any(path: Path) -> Dataset:
    """Loads a dataset of any image size and number of classes.

    Args:
        path: a folder with four IDX files or one `.npz` file; such a file; or a folder
            of several sets and the prefix of one, as in `gzip/emnist-letters`.

    Returns:
        The dataset, with the sha256 of its arrays and a note on what was changed.
    """
    name, files = _choose_set(path)
    arrays, notes = read_arrays(files), []
    validation = {"x_val", "y_val"} & arrays.keys()
    wanted = [*FILES, *("x_val", "y_val")] if validation else FILES
    if missing := [array for array in wanted if array not in arrays]:
        raise InputError(f"{path} lacks {' and '.join(missing)}; give {NEEDED}")
    labels = [array for array in wanted if array.startswith("y")]
    if name.startswith("qmnist") and arrays["y_train"].ndim == 2:
        arrays |= {array: arrays[array][:, 0] for array in labels}
        notes.append("the labels of QMNIST's files are the first of their 8 columns")
    if name.startswith("emnist") and isinstance(files, dict):
        images = arrays.keys() - labels
        arrays |= {array: arrays[array].swapaxes(1, 2) for array in images}
        notes.append("the images of EMNIST's files are transposed back")
        if name.startswith("emnist-letters"):
            arrays |= {array: arrays[array] - np.int32(1) for array in labels}
            notes.append("the labels 1..26 became 0..25")
    return Dataset(
        train=Split(arrays["x_train"], arrays["y_train"]),
        test=Split(arrays["x_test"], arrays["y_test"]),
        validation=Split(arrays["x_val"], arrays["y_val"]) if validation else None,
        class_names=tuple(arrays.get("class_names", ())),
        note=f"idx: {'; '.join(notes)}" if notes else "",
        data_dir=str(path.absolute()),
    )


def _choose_set(path: Path) -> tuple[str, Files]:
    """Returns the name and the files of the one set that a path names."""
    if path.is_file():
        return path.name, path
    found = find_sets(path if path.is_dir() else path.parent)
    if not path.is_dir():  # a prefix
        found = {name: found[name] for name in found.keys() & {path.name}}
    if len(found) > 1:
        raise InputError(
            f"{path} holds several datasets ({', '.join(sorted(found))}); give one of "
            f"them, as in {path / max(found)}"
        )
    if not found:
        raise InputError(f"{path} holds no dataset; give {NEEDED}")
    return found.popitem()


def _load_published(name: str, folder: Path | None, required: bool) -> Dataset:
    """Returns a published set from a folder, or else the cache or a download."""
    arrays = _find_published(name, folder) if folder else None
    if arrays is None and required:
        raise InputError(
            f"{folder} holds no files of {name}; put {', '.join(FILES.values())} there "
            f"or in its sub-folder {' or '.join(SETS[name].folders)} (as published, "
            "without .gz or with names like train-images.idx3-ubyte, or Keras's "
            "mnist.npz), or leave --data_dir out"
        )
    data_dir = str(folder.absolute()) if folder and arrays is not None else None
    if arrays is None:
        arrays = load_or_build(SETS[name].checksum, partial(_download, name))
    dataset = Dataset(
        name=name,
        train=Split(arrays["x_train"], arrays["y_train"]),
        test=Split(arrays["x_test"], arrays["y_test"]),
        class_names=SETS[name].class_names,
        data_dir=data_dir,
    )
    vars(dataset)["known_checksum"] = SETS[name].checksum
    return dataset


def _find_published(name: str, folder: Path) -> Arrays | None:
    """Returns the verified arrays of a set if a folder or a sub-folder holds them.

    All sets use the same file names, so intact files of another set are skipped.
    """
    published = SETS[name]
    for where in (*(folder / sub for sub in published.folders), folder):
        found = find_sets(where)
        files = found.get("", found.get("mnist.npz"))
        if files is None:
            continue
        paths = files if isinstance(files, dict) else {}
        if _digests(paths) == published.sha256:
            # Decompressing MNIST takes 0.3 s, hence the cache.
            return load_or_build(published.checksum, partial(read_arrays, files))
        arrays = read_arrays(files)
        wrong = [
            str(paths.get(array, array))
            for array, sha256 in zip(FILES, published.content_sha256, strict=True)
            if array not in arrays or content_sha256(arrays[array]) != sha256
        ]
        if not wrong:
            return arrays
        if len(wrong) < len(FILES):
            raise InputError(
                f"the files in {where} are not those of {name}: missing, damaged or of "
                f"another set is {' and '.join(wrong)}; replace it"
            )
    return None


def _digests(files: dict[str, Path]) -> tuple[str, ...]:
    """Returns the sha256 of each of the four files that there are."""
    contents = (files[array].read_bytes() for array in FILES if array in files)
    return tuple(hashlib.sha256(content).hexdigest() for content in contents)


def _download(name: str) -> Arrays:
    """Downloads and verifies the arrays of a set."""
    url = SETS[name].url
    logging.info("downloading %s from %s", name, url)
    with tempfile.TemporaryDirectory(prefix="mnist_jax-") as folder:
        try:
            download_files(name, Path(folder))
            files = {array: Path(folder) / file for array, file in FILES.items()}
            if _digests(files) != SETS[name].sha256:
                raise DownloadError("the files have another sha256")
            return read_arrays(files)
        except InputError as error:
            raise DownloadError(
                f"{name} was not found and could not be downloaded from {url} ({error})"
                f"; set --data_dir or {_VARIABLE} to a folder with its four files, or "
                "allow access to that host"
            ) from None
