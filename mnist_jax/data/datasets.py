"""Data sets: found, verified, downloaded where need be, decoded to uint8 arrays."""

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
from mnist_jax.data.types import Dataset, Split
from mnist_jax.errors import InputError
from mnist_jax.records.files import hold_lock

# TFDS's own records (a test compares), frozen here in the order of FILES so that a
# start with files at hand need not import TFDS.
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
    "NOT MNIST: these are scikit-learn's 1,797 handwritten digits of 8x8 pixels brought"
    " to 28x28, used because MNIST was neither found nor downloadable; for MNIST set"
    " --data_dir or MNIST_JAX_DATA_DIR to a folder with its four files or allow access"
    f" to {urlsplit(URLS['mnist']).hostname}."
)

Downloader = Callable[[str, Path], None]


# Loading: a folder of files, else earlier downloads, else a download, else the digits.


def load_dataset(
    name: str = "auto",
    data_dir: str | os.PathLike[str] | None = None,
    download: Downloader = download_files,
) -> Dataset:
    """Loads a data set with its official split and no validation set.

    The four files are taken from `data_dir` (or its sub-folder called like the set);
    without one from the folder in `MNIST_JAX_DATA_DIR`, then from earlier downloads in
    `cache_dir()`, then from the network. Their sha256 is verified each time. Nothing is
    written outside `cache_dir()`.

    Args:
        name: one of `DATASETS`. "auto" is MNIST where it can be had and else the
            digits, with a `note`. "digits" needs no files and ignores `data_dir`.
        data_dir: a folder that must hold the files; None or empty to search elsewhere.
        download: puts the four files of a set into a folder or raises `DownloadError`.

    Returns:
        The data set: `[60000,28,28]` and `[10000,28,28]` images; 1,437 and 360 for the
        digits.

    Raises:
        InputError: an unknown name, or files that are missing, incomplete or damaged.
    """
    if name not in DATASETS:
        raise InputError(
            f"--dataset={name} is unknown: {', '.join(DATASETS)} are allowed; choose"
            " one of them."
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
        logging.warning("%s Using scikit-learn's digits instead.", error)
        return _digits_dataset(note=FALLBACK_NOTE)


def _digits_dataset(note: str) -> Dataset:
    """Returns scikit-learn's digits as a data set."""
    images, labels, is_test = load_digits()
    train = Split(images[~is_test], labels[~is_test])
    test = Split(images[is_test], labels[is_test])
    content = b"".join(array.tobytes() for array in (*train, *test))
    checksum = hashlib.sha256(content).hexdigest()
    return Dataset("digits", train, None, test, checksum, note)


def _find_files(name: str, data_dir: str | os.PathLike[str] | None) -> Path | None:
    """Returns the folder that holds a set's verified files; None to download them."""
    if data_dir:
        folder = Path(os.path.expanduser(data_dir))
        if (found := _search_folder(folder, "--data_dir", name)) is None:
            raise InputError(
                f"--data_dir={folder} holds no files of {name}: put {_files_phrase()}"
                f" there or in its sub-folder {name}, or leave out --data_dir."
            )
        return found
    # An environment variable is a standing setting, so it may lack this one set.
    if standing := os.environ.get("MNIST_JAX_DATA_DIR"):
        folder = Path(os.path.expanduser(standing))
        if (found := _search_folder(folder, "MNIST_JAX_DATA_DIR", name)) is not None:
            return found
    return _find_download(name)


def _find_download(name: str) -> Path | None:
    """Returns the folder of a set that was downloaded before; None if it was not."""
    downloads = _downloads_dir(name)
    try:
        if _hash_files(downloads) == SHA256[name]:
            return downloads
    except OSError:
        return None  # nothing was downloaded yet
    message = "The files in %s are damaged: downloading again."
    logging.log_first_n(logging.WARNING, message, 1, downloads)
    return None


def _search_folder(folder: Path, setting: str, name: str) -> Path | None:
    """Returns the folder or sub-folder with a set's verified files, None without any.

    All sets use the same file names, so complete files of another set count as none.
    """
    if not folder.is_dir():
        raise InputError(
            f"{setting}={folder} is not a folder: name one that holds"
            f" {_files_phrase()}, or leave {setting} out."
        )
    for candidate in (folder / name, folder):
        missing = [file for file in FILES if not os.path.isfile(candidate / file)]
        if len(missing) == len(FILES):
            continue
        if missing:
            raise InputError(
                f"{candidate} lacks {' and '.join(missing)} beside the files that it"
                f" holds: {_files_phrase()} are needed; copy the missing ones there."
            )
        try:
            digests = _hash_files(candidate)
        except OSError as error:
            raise InputError(
                f"A file in {candidate} can't be read ({error}): make it readable or"
                f" name another folder with {setting}."
            ) from None
        if digests == SHA256[name]:
            return candidate
        if digests not in SHA256.values():
            file, got, right = _find_damage(name, digests)
            raise InputError(
                f"{candidate / file} is truncated or damaged: its"
                f" {os.path.getsize(candidate / file)} bytes have the sha256 {got}, and"
                f" {name}'s have {right}; delete it or replace it with the published"
                " file."
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
    """Returns the first file whose sha256 is wrong, that sha256, and the right one."""
    rows = zip(FILES, digests, SHA256[name], strict=True)
    return next((file, got, right) for file, got, right in rows if got != right)


def _files_phrase() -> str:
    """Returns the four file names as part of a sentence."""
    return f"{', '.join(FILES[:-1])} and {FILES[-1]}"


def _downloads_dir(name: str) -> Path:
    """Returns the folder that keeps the downloaded files of a set."""
    return cache_dir() / "downloads" / name


@contextlib.contextmanager
def _one_at_a_time(name: str) -> Iterator[None]:
    """Lets one process download a set while others wait; without a cache, all at once.

    Without this, processes that start together would each download it.
    """

    def warn() -> None:
        logging.warning("Waiting for another process that downloads %s.", name)

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(InputError):  # no cache: nothing to wait for
            stack.enter_context(hold_lock(_downloads_dir(name) / ".lock", warn))
        yield


def _download_dataset(name: str, download: Downloader) -> Dataset:
    """Downloads, verifies, keeps and decodes the files of a set."""
    host = urlsplit(URLS[name]).hostname
    logging.info("Downloading %s from %s.", name, host)
    with _scratch_folder() as scratch:
        folder = Path(scratch)
        try:
            download(name, folder)
            digests = _hash_files(folder)
            if digests != SHA256[name]:
                file, got, right = _find_damage(name, digests)
                raise DownloadError(f"{file} came with sha256 {got} instead of {right}")
        except (DownloadError, OSError) as error:
            raise DownloadError(
                f"{name} is in no known folder and could not be downloaded from"
                f" {URLS[name]} ({error}): set --data_dir or MNIST_JAX_DATA_DIR to a"
                f" folder that holds {_files_phrase()}, or allow access to {host}."
            ) from None
        dataset = _decode_files(name, folder)
        _keep_downloads(name, folder)
    return dataset


def _scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Creates a folder beside the kept downloads or, if that fails, elsewhere."""
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=cache_dir(), prefix="download-")
    except OSError:
        return tempfile.TemporaryDirectory(prefix="mnist_jax-download-")


def _keep_downloads(name: str, folder: Path) -> None:
    """Moves verified files to where the next start finds them."""
    try:
        _downloads_dir(name).mkdir(parents=True, exist_ok=True)
        for file in FILES:
            os.replace(folder / file, _downloads_dir(name) / file)
    except OSError as error:
        warn_unwritable(error)


def _decode_files(name: str, folder: Path) -> Dataset:
    """Decodes a folder of verified files, or loads what was decoded from equal ones."""
    arrays = []
    item_shape: tuple[int, ...]
    for file, digest in zip(FILES, SHA256[name], strict=True):
        if "images" in file:
            read, item_shape = idx.read_images, idx.IMAGE_SHAPE
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
