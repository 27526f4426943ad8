"""Finds or downloads datasets, and verifies them.

Sources, in this order: a folder of files, the cache, a download, the small digits.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from absl import logging

from mnist_jax.config import DATASETS
from mnist_jax.data.array_cache import cache_dir, load_or_build, read_entry
from mnist_jax.data.digits import load_digits
from mnist_jax.data.download import DownloadError, download_files
from mnist_jax.data.published import FILES, SETS
from mnist_jax.data.reader import (
    NEEDED,
    SPLITS,
    Arrays,
    Files,
    content_sha256,
    find_sets,
    read_arrays,
)
from mnist_jax.data.types import CLASSES, Dataset, Split
from mnist_jax.errors import InputError
from mnist_jax.records.files import hold_lock

FALLBACK_NOTE = (
    "NOT MNIST: these are scikit-learn's 1,797 handwritten digits, resized from 8x8 to"
    " 28x28 pixels, used because MNIST was not found and could not be downloaded; for"
    " MNIST set --data_dir or MNIST_JAX_DATA_DIR to a folder with its four files or"
    f" allow access to {urlsplit(SETS['mnist'].url).hostname}."
)
_VARIABLE = "MNIST_JAX_DATA_DIR"
_FILES = ", ".join(FILES.values())

Downloader = Callable[[str, Path], None]


def load_dataset(
    name: str = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    download: Downloader = download_files,
) -> Dataset:
    """Loads a dataset with its official split and no validation set.

    The files are read from `data_dir`, by default the folder `MNIST_JAX_DATA_DIR`. The
    sha256 of their content is verified each time. Without a folder the set comes from
    the cache, or is downloaded. docs/command_line.md lists the forms that are read.
    Nothing is written outside `cache_dir()`.

    Args:
        name: one of `DATASETS`. "idx" is any set in `data_dir`. "auto" is MNIST if
            available, otherwise the digits with a `note`, unless a data folder is set.
            "digits" needs no files and ignores `data_dir`.
        data_dir: a folder that must hold the files; None or empty to search elsewhere.
        download: puts the four files of a set into a folder or raises `DownloadError`.

    Returns:
        The dataset: `[60000,28,28]` and `[10000,28,28]` images; 1,437 and 360 for the
        digits; any size and number for "idx".

    Raises:
        InputError: the name is unknown, or files are missing, incomplete or damaged.
    """
    if name not in DATASETS:
        raise InputError(
            f"--dataset={name} is unknown; choose one of {', '.join(DATASETS)}"
        )
    setting, given = "--data_dir", data_dir
    if not given:
        setting, given = _VARIABLE, os.environ.get(_VARIABLE)
    folder = Path(given).expanduser() if given else None
    if name == "digits":
        dataset = load_digits()
    elif name == "idx" and folder is not None:
        dataset = load_any(folder, setting)
    elif name == "idx":
        raise InputError(
            "--dataset=idx needs the folder of its files; give it by --data_dir or "
            f"{_VARIABLE}"
        )
    else:
        try:
            published = "mnist" if name == "auto" else name
            dataset = _published_set(published, folder, setting, download)
        except DownloadError as error:
            if name != "auto" or folder is not None:
                raise
            logging.warning("%s; using scikit-learn's digits instead", error)
            dataset = load_digits(FALLBACK_NOTE)
    object.__setattr__(dataset, "loaded", True)
    return dataset


def load_any(path: Path, setting: str) -> Dataset:
    """Loads a dataset of any image size and number of classes.

    Args:
        path: a folder with four IDX files or one `.npz` file; such a file; or a folder
            of several sets and the prefix of one, as in `gzip/emnist-letters`.
        setting: the flag or variable that gives it, for messages.

    Returns:
        The dataset, with the sha256 of its arrays and a note on what was changed.
    """
    prefix, files = _choose_set(path, setting)
    arrays = read_arrays(files)
    splits = [s for s in SPLITS if s != "val" or {"x_val", "y_val"} & arrays.keys()]
    wanted = [f"{axis}_{split}" for split in splits for axis in "xy"]
    if missing := [name for name in wanted if name not in arrays]:
        raise InputError(
            f"{setting}={path} lacks {' and '.join(missing)}; give {NEEDED}"
        )
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
    try:
        return Dataset(
            train=held["train"],
            test=held["test"],
            validation=held.get("val"),
            class_names=tuple(arrays.get("class_names", ())),
            note=f"idx: {'; '.join(notes)}" if notes else "",
            data_dir=str(path.absolute()),
        )
    except InputError as error:
        raise InputError(f"{setting}={path}: {error}") from None


def _choose_set(path: Path, setting: str) -> tuple[str, Files]:
    """Returns the one set that a path names, and its prefix or name."""
    if path.is_file():
        return path.name, path
    found = find_sets(path if path.is_dir() else path.parent)
    if not path.is_dir():  # a prefix
        found = {name: found[name] for name in found.keys() & {path.name}}
    elif any(isinstance(files, dict) for files in found.values()):
        found = {k: files for k, files in found.items() if isinstance(files, dict)}
    if len(found) > 1:
        raise InputError(
            f"{setting}={path} holds several datasets ({', '.join(sorted(found))}); "
            f"give one, as in {setting}={path / max(found)}"
        )
    if not found:
        raise InputError(
            f"{setting}={path} holds no dataset; give a folder that holds {NEEDED}"
        )
    [(name, files)] = found.items()
    return name, files


def _published_set(
    name: str, folder: Path | None, setting: str, download: Downloader
) -> Dataset:
    """Returns a published set from a folder, the cache or a download."""
    arrays = None
    if folder is not None:
        arrays, others = _search(name, folder)
        # The variable applies to all datasets, so its folder may lack this one.
        if arrays is None and (setting != _VARIABLE or not others):
            reason = f"holds no files of {name}" if folder.is_dir() else "is no folder"
            if others:
                reason += f", but those of {' and '.join(sorted(others))}"
            raise InputError(
                f"{setting}={folder} {reason}; put {_FILES} there or in its sub-folder "
                f"{' or '.join(SETS[name].folders)} (as published, without .gz or with "
                f"names like train-images.idx3-ubyte, or Keras's mnist.npz), or leave "
                f"{setting} out"
            )
    used = folder if arrays is not None else None
    if arrays is None:
        arrays = read_entry(SETS[name].checksum)
    if arrays is None:
        with _one_at_a_time(name):
            # Another process may have downloaded it while this one waited.
            arrays = read_entry(SETS[name].checksum) or _download(name, download)
    x_train, y_train, x_test, y_test = (arrays[array] for array in FILES)
    return Dataset(
        name=name,
        train=Split(x_train, y_train),
        test=Split(x_test, y_test),
        classes=CLASSES,
        checksum=SETS[name].checksum,
        data_dir=str(used.absolute()) if used else None,
    )


def _search(name: str, folder: Path) -> tuple[Arrays | None, set[str]]:
    """Returns a set's arrays if a folder holds them, or the sets that it does hold.

    All sets use the same file names, so intact files of another set are skipped.
    """
    others = set()
    subfolders = [sub for each in SETS.values() for sub in each.folders]
    for sub in dict.fromkeys([*SETS[name].folders, "", *subfolders]):
        found = find_sets(folder / sub)
        if files := found.get("", found.get("mnist.npz")):
            identified, arrays = _identify(files)
            if identified == name:
                return arrays, set()
            others.add(identified)
    return None, others


def _identify(files: Files) -> tuple[str, Arrays]:
    """Returns the name and the arrays of the published set that files hold.

    Raises:
        InputError: they are incomplete, damaged or of no published set.
    """
    paths = files if isinstance(files, dict) else {}
    own = [_file_sha256(paths[array]) for array in FILES if array in paths]
    for name, published in SETS.items():
        if tuple(own) == published.sha256:
            # Decompressing MNIST takes 0.3 s, hence the cache.
            return name, load_or_build(published.checksum, partial(read_arrays, files))
    arrays = read_arrays(files)
    where = files if isinstance(files, Path) else next(iter(paths.values())).parent
    if missing := [f"{a} ({file})" for a, file in FILES.items() if a not in arrays]:
        raise InputError(f"{where} lacks {' and '.join(missing)}; copy it there")
    contents = [content_sha256(arrays[array]) for array in FILES]
    for name, published in SETS.items():
        if tuple(contents) == published.content_sha256:
            return name, arrays
    known = {d for each in SETS.values() for d in (*each.sha256, *each.content_sha256)}
    damaged = [
        str(paths.get(array, array))
        for array, *digests in zip(FILES, own or contents, contents, strict=True)
        if known.isdisjoint(digests)
    ]
    raise InputError(
        f"{where} holds no published set: truncated, damaged or from elsewhere is "
        f"{' and '.join(damaged) or 'a file of another set'}; delete the files or "
        "replace them with the published ones"
    )


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    """Holds a lock, so that processes that start together download a set only once.

    Without a writable cache there is no lock, and each process downloads.
    """

    def warn(*_: object) -> None:
        logging.warning("waiting for another process to download %s", name)

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, InputError):  # no writable cache
            stack.enter_context(hold_lock(cache_dir() / ".lock", warn))
        yield


def _download(name: str, download: Downloader) -> Arrays:
    """Downloads, verifies and caches the arrays of a set."""
    url = SETS[name].url
    logging.info("downloading %s from %s", name, url)
    with tempfile.TemporaryDirectory(prefix="mnist_jax-") as folder:
        try:
            download(name, Path(folder))
            arrays, _ = _search(name, Path(folder))
            if arrays is None:
                raise DownloadError("the files are not those of the set")
            return arrays
        except (InputError, OSError) as error:
            raise DownloadError(
                f"{name} was not found and could not be downloaded from {url} ({error})"
                f"; set --data_dir or {_VARIABLE} to a folder that holds {_FILES}, or "
                f"allow access to {urlsplit(url).hostname}"
            ) from None
