"""Finds or downloads datasets, and verifies them.

Sources, in this order: a folder of files, the cache, a download, the small digits.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from absl import logging

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

Downloader = Callable[[str, Path], None]


def load_dataset(
    name: str = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    download: Downloader = download_files,
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
        download: puts the four files of a set into a folder or raises `DownloadError`.

    Returns:
        The dataset: `[60000,28,28]` and `[10000,28,28]` images; 1,437 and 360 for the
        digits; any size and number for "idx".
    """
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
            dataset = _load_published(published, folder, bool(data_dir), download)
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
    prefix, files = _choose_set(path)
    arrays = read_arrays(files)
    splits = ["train", "test"] + ["val"] * bool({"x_val", "y_val"} & arrays.keys())
    wanted = [f"{axis}_{split}" for split in splits for axis in "xy"]
    if missing := [name for name in wanted if name not in arrays]:
        raise InputError(f"{path} lacks {' and '.join(missing)}; give {NEEDED}")
    images = {split: arrays[f"x_{split}"] for split in splits}
    labels = {split: arrays[f"y_{split}"] for split in splits}
    notes = []
    if prefix.startswith("qmnist") and labels["train"].ndim == 2:
        labels = {split: columns[:, 0] for split, columns in labels.items()}
        notes.append("the labels of QMNIST's files are the first of their 8 columns")
    if prefix.startswith("emnist") and not prefix.endswith(".npz"):
        images = {k: np.ascontiguousarray(v.swapaxes(1, 2)) for k, v in images.items()}
        notes.append("the images of EMNIST's files are transposed back")
        if low := min(int(values.min()) for values in labels.values()):
            high = max(int(values.max()) for values in labels.values())
            labels = {split: values - low for split, values in labels.items()}
            notes.append(f"the labels {low}..{high} became 0..{high - low}")
    held = {split: Split(images[split], labels[split]) for split in splits}
    return Dataset(
        train=held["train"],
        test=held["test"],
        validation=held.get("val"),
        class_names=tuple(arrays.get("class_names", ())),
        note=f"idx: {'; '.join(notes)}" if notes else "",
        data_dir=str(path.absolute()),
    )


def _choose_set(path: Path) -> tuple[str, Files]:
    """Returns the one set that a path names, and its prefix or name."""
    if path.is_file():
        return path.name, path
    found = find_sets(path if path.is_dir() else path.parent)
    if not path.is_dir():  # a prefix
        found = {name: found[name] for name in found.keys() & {path.name}}
    elif any(isinstance(files, dict) for files in found.values()):
        found = {k: files for k, files in found.items() if isinstance(files, dict)}
    if len(found) != 1:
        several = f"several datasets ({', '.join(sorted(found))}); give one of them, as"
        if found:
            raise InputError(f"{path} holds {several} in {path / max(found)}")
        raise InputError(f"{path} holds no dataset; give {NEEDED}")
    return found.popitem()


def _load_published(
    name: str, folder: Path | None, required: bool, download: Downloader
) -> Dataset:
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
        arrays = load_or_build(SETS[name].checksum, partial(_download, name, download))
    x_train, y_train, x_test, y_test = (arrays[array] for array in FILES)
    dataset = Dataset(
        name=name,
        train=Split(x_train, y_train),
        test=Split(x_test, y_test),
        class_names=SETS[name].class_names,
        data_dir=data_dir,
    )
    vars(dataset)["checksum"] = SETS[name].checksum
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
        digests = {array: {_sha256(path)} for array, path in paths.items()}
        expected = dict(zip(FILES, published.sha256, strict=True))
        if digests == {array: {digest} for array, digest in expected.items()}:
            # Decompressing MNIST takes 0.3 s, hence the cache.
            return load_or_build(published.checksum, partial(read_arrays, files))
        arrays = read_arrays(files)
        for array, values in arrays.items():
            digests.setdefault(array, set()).add(content_sha256(values))
        contents = dict(zip(FILES, published.content_sha256, strict=True))
        wrong = [
            str(paths.get(array, array))
            for array in FILES
            if not digests.get(array, set()) & {expected[array], contents[array]}
        ]
        if not wrong:
            return arrays
        if len(wrong) < len(FILES):
            raise InputError(
                f"the files in {where} are not those of {name}: missing, damaged or of "
                f"another set is {' and '.join(wrong)}; replace it"
            )
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(name: str, download: Downloader) -> Arrays:
    """Downloads and verifies the arrays of a set."""
    url = SETS[name].url
    logging.info("downloading %s from %s", name, url)
    with tempfile.TemporaryDirectory(prefix="mnist_jax-") as folder:
        try:
            download(name, Path(folder))
            files = {array: Path(folder) / file for array, file in FILES.items()}
            if tuple(map(_sha256, files.values())) == SETS[name].sha256:
                return read_arrays(files)
            raise DownloadError("the files have another sha256")
        except InputError as error:
            raise DownloadError(
                f"{name} was not found and could not be downloaded from {url} ({error})"
                f"; set --data_dir or {_VARIABLE} to a folder that holds "
                f"{', '.join(FILES.values())}, or allow access to that host"
            ) from None
