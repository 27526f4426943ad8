"""Finds or downloads datasets, verifies them and decodes them to uint8 arrays."""

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from absl import logging

from mnist_jax.config import DATASETS
from mnist_jax.data.any_folder import load_any
from mnist_jax.data.array_cache import cache_dir, load_or_build, warn_unwritable
from mnist_jax.data.checksums import SHA256, published_sha256
from mnist_jax.data.data_folder import (
    FILES_PHRASE,
    Files,
    intact_sets,
    no_files_error,
    search_folder,
)
from mnist_jax.data.digits import load_digits
from mnist_jax.data.download import FILES, URLS, DownloadError, download_files
from mnist_jax.data.idx import read_idx
from mnist_jax.data.types import CLASSES, IMAGE_SHAPE, Dataset, Split
from mnist_jax.errors import InputError
from mnist_jax.records.files import expand_home, hold_lock

FALLBACK_NOTE = (
    "NOT MNIST: these are scikit-learn's 1,797 handwritten digits, resized from 8x8 to"
    " 28x28 pixels, used because MNIST was not found and could not be downloaded; for"
    " MNIST set --data_dir or MNIST_JAX_DATA_DIR to a folder with its four files or"
    f" allow access to {urlsplit(URLS['mnist']).hostname}."
)
_VARIABLE = "MNIST_JAX_DATA_DIR"

Downloader = Callable[[str, Path], None]


# Sources, in order: a folder of files, earlier downloads, a new download, the digits.


def load_dataset(
    name: str = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    download: Downloader = download_files,
) -> Dataset:
    """Loads a dataset with its official split and no validation set.

    The files are read from `data_dir` (or its sub-folder named after the set). By
    default they are read from the folder `MNIST_JAX_DATA_DIR` or from earlier downloads
    in `cache_dir()`, or else downloaded. docs/command_line.md lists the forms that are
    read. The sha256 of their content is verified each time. Nothing is written outside
    `cache_dir()`.

    Args:
        name: one of `DATASETS`. "idx" is any set in `data_dir`, see `load_any`. "auto"
            is MNIST if available, otherwise the digits with a `note`, unless a data
            folder is set. "digits" needs no files and ignores
            `data_dir`.
        data_dir: a folder that must hold the files; None or empty to search elsewhere.
        download: puts the four files of a set into a folder or raises `DownloadError`.

    Returns:
        The dataset: `[60000,28,28]` and `[10000,28,28]` images; 1,437 and 360 for the
        digits; any size and number for "idx".

    Raises:
        InputError: the name is unknown, or files are missing, incomplete or damaged.
    """
    dataset = _load_dataset(name, data_dir, download)
    object.__setattr__(dataset, "loaded", True)
    return dataset


def _load_dataset(
    name: str, data_dir: str | os.PathLike[str] | None, download: Downloader
) -> Dataset:
    """Loads a dataset; see `load_dataset`."""
    if name not in DATASETS:
        raise InputError(
            f"--dataset={name} is unknown; choose one of {', '.join(DATASETS)}"
        )
    if name == "digits":
        return _digits_dataset(note="")
    if name == "idx":
        return _any_dataset(data_dir)
    files_name = "mnist" if name == "auto" else name
    files, folder = _find_files(files_name, data_dir)
    if files is not None:
        return _decode_files(files_name, files, folder)
    try:
        with _one_at_a_time(files_name):
            # Another process may have downloaded it while this one waited.
            if (files := _find_download(files_name)) is not None:
                return _decode_files(files_name, files)
            return _download_dataset(files_name, download)
    except DownloadError as error:
        if environment_dir := _environment_dir():
            raise DownloadError(
                f"{error}; {_VARIABLE}={environment_dir} holds other datasets only"
                f" ({', '.join(intact_sets(environment_dir))})"
            ) from None
        if name != "auto":
            raise
        logging.warning("%s; using scikit-learn's digits instead", error)
        return _digits_dataset(note=FALLBACK_NOTE)


def _any_dataset(data_dir: str | os.PathLike[str] | None) -> Dataset:
    """Returns the dataset of any size in the given folder, or the environment's."""
    if data_dir:
        return load_any(expand_home(data_dir), "--data_dir")
    if environment_dir := _environment_dir():
        return load_any(environment_dir, _VARIABLE)
    raise InputError(
        "--dataset=idx needs the folder of its files; give it by --data_dir or "
        f"{_VARIABLE}"
    )


def _digits_dataset(note: str) -> Dataset:
    """Returns scikit-learn's digits as a dataset."""
    images, labels, is_test = load_digits()
    train = Split(images[~is_test], labels[~is_test])
    test = Split(images[is_test], labels[is_test])
    content = b"".join(array.tobytes() for array in (*train, *test))
    checksum = hashlib.sha256(content).hexdigest()
    return Dataset(train, test, name="digits", checksum=checksum, note=note)


def _find_files(
    name: str, data_dir: str | os.PathLike[str] | None
) -> tuple[Files | None, Path | None]:
    """Returns a set's verified files, or None to download them, and their folder.

    It is the one that the user named, None if the files are in the cache.
    """
    if data_dir:
        folder = expand_home(data_dir)
        if (found := search_folder(folder, "--data_dir", name)) is None:
            raise no_files_error(folder, "--data_dir", name)
        return found, folder
    if environment_dir := _environment_dir():
        if (found := search_folder(environment_dir, _VARIABLE, name)) is not None:
            return found, environment_dir
        # The variable applies to all datasets, so its folder may lack this one.
        if not intact_sets(environment_dir):
            raise no_files_error(environment_dir, _VARIABLE, name)
    return _find_download(name), None


def _environment_dir() -> Path | None:
    """Returns the folder in `MNIST_JAX_DATA_DIR`, or None if it is not set."""
    folder = os.environ.get(_VARIABLE)
    return expand_home(folder) if folder else None


def _find_download(name: str) -> Files | None:
    """Returns the files of an earlier download of a set, or None."""
    downloads = _downloads_dir(name)
    files = tuple(downloads / file for file in FILES)
    try:
        if tuple(map(published_sha256, files)) == SHA256[name]:
            return files
    except OSError:
        return None  # nothing was downloaded yet
    message = "the files in %s are damaged; downloading them again"
    logging.log_first_n(logging.WARNING, message, 1, downloads)
    return None


def _downloads_dir(name: str) -> Path:
    """Returns the folder for the downloaded files of a set."""
    return cache_dir() / "downloads" / name


@contextlib.contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    """Holds a lock, so that processes that start together download a set only once.

    Without a writable cache there is no lock, and each process downloads.
    """

    def warn(holder: str) -> None:
        logging.warning("waiting for %s to download %s", holder, name)

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(InputError):  # no writable cache
            stack.enter_context(hold_lock(_downloads_dir(name) / ".lock", warn))
        yield


def _download_dataset(name: str, download: Downloader) -> Dataset:
    """Downloads, verifies, decodes and caches the files of a set."""
    host = urlsplit(URLS[name]).hostname
    logging.info("downloading %s from %s", name, host)
    with _scratch_folder() as scratch:
        folder = Path(scratch)
        try:
            download(name, folder)
            for file, expected in zip(FILES, SHA256[name], strict=True):
                if (got := published_sha256(folder / file)) != expected:
                    raise DownloadError(
                        f"{file} has sha256 {got} instead of {expected}"
                    )
        except (DownloadError, OSError) as error:
            raise DownloadError(
                f"{name} was not found and could not be downloaded from {URLS[name]}"
                f" ({error}); set --data_dir or MNIST_JAX_DATA_DIR to a folder that"
                f" holds {FILES_PHRASE}, or allow access to {host}"
            ) from None
        dataset = _decode_files(name, tuple(folder / file for file in FILES))
        _keep_downloads(name, folder)
    return dataset


def _scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Creates a temporary folder in the cache or, if that fails, elsewhere."""
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=cache_dir(), prefix="download-")
    except OSError:
        return tempfile.TemporaryDirectory(prefix="mnist_jax-download-")


def _keep_downloads(name: str, folder: Path) -> None:
    """Moves verified files to the cache, where later starts find them."""
    try:
        _downloads_dir(name).mkdir(parents=True, exist_ok=True)
        for file in FILES:
            os.replace(folder / file, _downloads_dir(name) / file)
    except OSError as error:
        warn_unwritable(error)


def _decode_files(name: str, files: Files, folder: Path | None = None) -> Dataset:
    """Decodes verified files, or loads the arrays from the cache."""
    arrays = [
        load_or_build(
            digest,
            IMAGE_SHAPE if "images" in kind else (),
            functools.partial(read_idx, file),
        )
        for file, kind, digest in zip(files, FILES, SHA256[name], strict=True)
    ]
    train_images, train_labels, test_images, test_labels = arrays
    return Dataset(
        name=name,
        train=Split(train_images, train_labels),
        test=Split(test_images, test_labels),
        classes=CLASSES,
        checksum=hashlib.sha256("".join(SHA256[name]).encode()).hexdigest(),
        data_dir=str(folder.absolute()) if folder else None,
    )
