"""Finds or downloads datasets, verifies them and decodes them to uint8 arrays."""

import contextlib
import functools
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from absl import logging

from mnist_jax.config import DATASETS
from mnist_jax.data import idx
from mnist_jax.data.array_cache import cache_dir, load_or_build, warn_unwritable
from mnist_jax.data.digits import load_digits
from mnist_jax.data.download import FILES, URLS, DownloadError, download_files
from mnist_jax.data.types import IMAGE_SHAPE, Dataset, Split
from mnist_jax.errors import InputError
from mnist_jax.records.files import hold_lock

# The checksums recorded in TFDS (a test compares them), in the order of FILES. Copied
# here so that TFDS is imported only for a download.
SHA256 = {
    "mnist": (
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    ),
    "fashion_mnist": (
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
    "kmnist": (
        "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
        "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
        "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
        "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
    ),
}
FALLBACK_NOTE = (
    "NOT MNIST: these are scikit-learn's 1,797 handwritten digits, resized from 8x8 to"
    " 28x28 pixels, used because MNIST was not found and could not be downloaded; for"
    " MNIST set --data_dir or MNIST_JAX_DATA_DIR to a folder with its four files or"
    f" allow access to {urlsplit(URLS['mnist']).hostname}."
)

Downloader = Callable[[str, Path], None]


# Sources, in order: a folder of files, earlier downloads, a new download, the digits.


def load_dataset(
    name: str = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    download: Downloader = download_files,
) -> Dataset:
    """Loads a dataset with its official split and no validation set.

    The four files are read from `data_dir` (or its sub-folder named after the set). By
    default they are read from the folder `MNIST_JAX_DATA_DIR` or from earlier downloads
    in `cache_dir()`, or else downloaded. Their sha256 is verified each time. Nothing is
    written outside `cache_dir()`.

    Args:
        name: one of `DATASETS`. "auto" is MNIST if available, otherwise the digits with
            a `note`. "digits" needs no files and ignores `data_dir`.
        data_dir: a folder that must hold the files; None or empty to search elsewhere.
        download: puts the four files of a set into a folder or raises `DownloadError`.

    Returns:
        The dataset: `[60000,28,28]` and `[10000,28,28]` images; 1,437 and 360 for the
        digits.

    Raises:
        InputError: the name is unknown, or files are missing, incomplete or damaged.
    """
    if name not in DATASETS:
        raise InputError(
            f"--dataset={name} is unknown; choose one of {', '.join(DATASETS)}"
        )
    if name == "digits":
        return _digits_dataset(note="")
    files_name = "mnist" if name == "auto" else name
    folder = _find_files(files_name, data_dir)
    if folder is not None:
        return _decode_files(files_name, folder)
    try:
        with _one_at_a_time(files_name):
            # Another process may have downloaded it while this one waited.
            if (folder := _find_download(files_name)) is not None:
                return _decode_files(files_name, folder)
            return _download_dataset(files_name, download)
    except DownloadError as error:
        if name != "auto":
            raise
        logging.warning("%s; using scikit-learn's digits instead", error)
        return _digits_dataset(note=FALLBACK_NOTE)


def _digits_dataset(note: str) -> Dataset:
    """Returns scikit-learn's digits as a dataset."""
    images, labels, is_test = load_digits()
    train = Split(images[~is_test], labels[~is_test])
    test = Split(images[is_test], labels[is_test])
    content = b"".join(array.tobytes() for array in (*train, *test))
    checksum = hashlib.sha256(content).hexdigest()
    return Dataset("digits", train, None, test, checksum, note)


def _find_files(name: str, data_dir: str | os.PathLike[str] | None) -> Path | None:
    """Returns the folder of a set's verified files, or None to download them."""
    if data_dir:
        folder = Path(os.path.expanduser(data_dir))
        if (found := _search_folder(folder, "--data_dir", name)) is None:
            raise InputError(
                f"--data_dir={folder} holds no files of {name}; put {_files_phrase()}"
                f" there or in its sub-folder {name}, or leave --data_dir out"
            )
        return found
    # The variable applies to all datasets, so its folder may lack this one.
    if env_dir := os.environ.get("MNIST_JAX_DATA_DIR"):
        folder = Path(os.path.expanduser(env_dir))
        if (found := _search_folder(folder, "MNIST_JAX_DATA_DIR", name)) is not None:
            return found
    return _find_download(name)


def _find_download(name: str) -> Path | None:
    """Returns the folder of an earlier download of a set, or None."""
    downloads = _downloads_dir(name)
    try:
        if _hash_files(downloads) == SHA256[name]:
            return downloads
    except OSError:
        return None  # nothing was downloaded yet
    message = "the files in %s are damaged; downloading them again"
    logging.log_first_n(logging.WARNING, message, 1, downloads)
    return None


def _search_folder(folder: Path, setting: str, name: str) -> Path | None:
    """Returns the folder or sub-folder that holds a set's verified files, or None.

    All sets use the same file names, so intact files of another set are skipped.
    """
    if not folder.is_dir():
        raise InputError(
            f"{setting}={folder} is not a folder; give one that holds"
            f" {_files_phrase()}, or leave {setting} out"
        )
    for candidate in (folder / name, folder):
        missing = [file for file in FILES if not os.path.isfile(candidate / file)]
        if len(missing) == len(FILES):
            continue
        if missing:
            raise InputError(
                f"{candidate} lacks {' and '.join(missing)}, and {_files_phrase()} are"
                " needed; copy the missing files there"
            )
        try:
            digests = _hash_files(candidate)
        except OSError as error:
            raise InputError(
                f"cannot read a file in {candidate} ({error}); make it readable or"
                f" give another folder with {setting}"
            ) from None
        if digests == SHA256[name]:
            return candidate
        if digests not in SHA256.values():
            file, got, expected = _find_damage(name, digests)
            raise InputError(
                f"{candidate / file} is truncated or damaged: its"
                f" {os.path.getsize(candidate / file)} bytes have the sha256 {got}, not"
                f" {name}'s {expected}; delete it or replace it with the published file"
            )
    return None


def _hash_files(folder: Path) -> tuple[str, ...]:
    """Returns the sha256 of the four files in a folder, in the order of FILES."""
    digests = []
    for file in FILES:
        with open(folder / file, "rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return tuple(digests)


def _find_damage(name: str, digests: tuple[str, ...]) -> tuple[str, str, str]:
    """Returns the first file with a wrong sha256, that sha256 and the expected one."""
    rows = zip(FILES, digests, SHA256[name], strict=True)
    return next(row for row in rows if row[1] != row[2])


def _files_phrase() -> str:
    """Returns the four file names joined for a message."""
    return f"{', '.join(FILES[:-1])} and {FILES[-1]}"


def _downloads_dir(name: str) -> Path:
    """Returns the folder for the downloaded files of a set."""
    return cache_dir() / "downloads" / name


@contextlib.contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    """Holds a lock, so that processes that start together download a set only once.

    Without a writable cache there is no lock, and each process downloads.
    """

    def warn() -> None:
        logging.warning("waiting for another process to download %s", name)

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
            digests = _hash_files(folder)
            if digests != SHA256[name]:
                file, got, expected = _find_damage(name, digests)
                raise DownloadError(f"{file} has sha256 {got} instead of {expected}")
        except (DownloadError, OSError) as error:
            raise DownloadError(
                f"{name} was not found and could not be downloaded from {URLS[name]}"
                f" ({error}); set --data_dir or MNIST_JAX_DATA_DIR to a folder that"
                f" holds {_files_phrase()}, or allow access to {host}"
            ) from None
        dataset = _decode_files(name, folder)
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


def _decode_files(name: str, folder: Path) -> Dataset:
    """Decodes a folder of verified files, or loads the arrays from the cache."""
    arrays = []
    item_shape: tuple[int, ...]
    for file, digest in zip(FILES, SHA256[name], strict=True):
        if "images" in file:
            read, item_shape = idx.read_images, IMAGE_SHAPE
        else:
            read, item_shape = idx.read_labels, ()
        build = functools.partial(read, folder / file)
        arrays.append(load_or_build(digest, item_shape, build))
    train_images, train_labels, test_images, test_labels = arrays
    return Dataset(
        name=name,
        train=Split(train_images, train_labels.astype(np.int32)),
        validation=None,
        test=Split(test_images, test_labels.astype(np.int32)),
        checksum=hashlib.sha256("".join(SHA256[name]).encode()).hexdigest(),
        note="",
    )
