"""Data sets: verified files -> uint8 arrays, pixel scalings, splits, epoch orders."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mnist_jax.config import DATASETS, PIXELS, SPLITS, VALIDATIONS
from mnist_jax.data import idx
from mnist_jax.data.array_cache import cache_dir, load_or_build, warn_unwritable
from mnist_jax.data.digits import load_digits
from mnist_jax.data.download import FILES, URLS, DownloadError, download_files
from mnist_jax.errors import InputError
from mnist_jax.records.files import lock_folder

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


class Split(NamedTuple):
    """Images and their labels, in one order: on the host, or later on the device."""

    images: np.ndarray  # [N,28,28] uint8, 0 is the blank paper
    labels: np.ndarray  # [N] int32, 0..9


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as a run uses it, and what a record must say about it."""

    name: str  # one of DATASETS without "auto"
    train: Split
    validation: Split | None
    test: Split
    checksum: str  # one sha256 over the files' sha256, or over the digits' arrays
    note: str  # empty, or one sentence to print wherever results are shown


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
    _check_choice("--dataset", name, DATASETS)
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
    for place in (folder / name, folder):
        missing = [file for file in FILES if not os.path.isfile(place / file)]
        if len(missing) == len(FILES):
            continue
        if missing:
            raise InputError(
                f"{place} lacks {' and '.join(missing)} beside the files that it holds:"
                f" {_files_phrase()} are needed; copy the missing ones there."
            )
        try:
            digests = _hash_files(place)
        except OSError as error:
            raise InputError(
                f"A file in {place} can't be read ({error}): make it readable or name"
                f" another folder with {setting}."
            ) from None
        if digests == SHA256[name]:
            return place
        if digests not in SHA256.values():
            file, got, right = _find_damage(name, digests)
            raise InputError(
                f"{place / file} is truncated or damaged: its"
                f" {os.path.getsize(place / file)} bytes have the sha256 {got}, and"
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

    def tell() -> None:
        logging.warning("Waiting for another process that downloads %s.", name)

    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # no cache: nothing that one could wait for
            stack.enter_context(lock_folder(_downloads_dir(name), tell))
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


# Splits, pixel scalings and epoch orders.


def split_dataset(
    dataset: Dataset,
    split: str = "official",
    split_seed: int = 0,
    validation: str = "none",
    validation_fraction: float = 0.2,
    train_size: int | None = None,
) -> Dataset:
    """Splits a data set anew into training, validation and test set.

    Args:
        dataset: as `load_dataset` returns it, without a validation set.
        split: "official", or "shuffled": of train and test together, permuted by
            `numpy.random.RandomState(split_seed)`, the first become the test set, as
            many as before (as scikit-learn's `train_test_split` does it).
        split_seed: `0..2**32-1`; only "shuffled" uses it.
        validation: "none"; "fraction": the last part of the training set; "test": the
            test set serves as validation set too.
        validation_fraction: share of the training set for "fraction", in (0,1).
        train_size: use only the first so many images of the training set; it counts
            before the validation set is cut off. None for all.

    Returns:
        The same data set, with the new split.

    Raises:
        InputError: a value out of its range, or a fraction that leaves a set empty.
    """
    _check_choice("--split", split, SPLITS)
    _check_choice("--validation", validation, VALIDATIONS)
    if dataset.validation is not None:
        raise InputError(
            f"{dataset.name} was given with a validation set of"
            f" {len(dataset.validation.labels)} images, which a new split would lose:"
            " split the data set that load_dataset returned."
        )
    train, test = dataset.train, dataset.test
    if split == "shuffled":
        train, test = _shuffle_split(train, test, split_seed)
    if train_size is not None:
        _check_range("--train_size", train_size, 1, len(train.labels))
        train = Split(train.images[:train_size], train.labels[:train_size])

    held_out = None
    if validation == "test":
        held_out = test
    elif validation == "fraction":
        size = len(train.labels)
        # Keras's arithmetic, rounding included; NaN fails the first comparison.
        share = validation_fraction
        cut = int(math.floor(size * (1.0 - share))) if 0.0 < share < 1.0 else 0
        if not 1 <= cut < size:
            raise InputError(
                f"--validation_fraction={share} of {size} training images leaves no"
                " image to train on or none to validate with: a number between 0 and 1"
                " that leaves both is allowed, such as 0.2."
            )
        held_out = Split(train.images[cut:], train.labels[cut:])
        train = Split(train.images[:cut], train.labels[:cut])
    return dataclasses.replace(dataset, train=train, validation=held_out, test=test)


def _shuffle_split(train: Split, test: Split, seed: int) -> tuple[Split, Split]:
    """Redistributes the images over sets of the same sizes."""
    _check_range("--split_seed", seed, 0, 2**32 - 1)
    images = np.concatenate([train.images, test.images])
    labels = np.concatenate([train.labels, test.labels])
    order = np.random.RandomState(seed).permutation(len(labels))
    for_test, for_train = np.split(order, [len(test.labels)])
    return (
        Split(images[for_train], labels[for_train]),
        Split(images[for_test], labels[for_test]),
    )


def scale_pixels(
    images: jax.Array | np.ndarray, pixels: str, mean: float = 0.0, std: float = 1.0
) -> jax.Array:
    """Turns uint8 pixels into network input; meant to run within the jitted step.

    Args:
        images: `[...,28,28] uint8`.
        pixels: "scaled": x/255; "standardized": (x/255 - mean) / std; "raw": x;
            "l2": each column of an image divided by its norm over the 28 rows, where a
            norm of zero counts as 1.
        mean: of the training pixels divided by 255, see `pixel_statistics`.
        std: their standard deviation; like `mean` only for "standardized".

    Returns:
        `[...,28,28] float32`.

    Raises:
        InputError: an unknown name in `pixels`.
    """
    _check_choice("--pixels", pixels, PIXELS)
    values = jnp.asarray(images).astype(jnp.float32)
    if pixels == "raw":
        return values
    if pixels == "scaled":
        return values / 255.0
    if pixels == "standardized":
        return (values / 255.0 - mean) / std
    norms = jnp.sqrt(jnp.sum(values * values, axis=-2, keepdims=True))  # [...,1,28]
    return values / jnp.where(norms == 0.0, 1.0, norms)


def pixel_statistics(images: np.ndarray) -> tuple[float, float]:
    """Returns mean and standard deviation of `[N,28,28] uint8` pixels divided by 255.

    If all pixels are equal, the standard deviation counts as 1, so that one can divide.
    """
    # In parts, since bincount makes a copy of eight bytes per pixel.
    parts = np.array_split(images.reshape(-1), max(1, images.size // 2**20))
    counts = sum(np.bincount(part, minlength=256) for part in parts)
    values = np.arange(256) / 255.0
    mean = np.average(values, weights=counts)
    variance = np.average((values - mean) ** 2, weights=counts)
    return float(mean), math.sqrt(variance) or 1.0


def epoch_indices(seed: int, epoch: int, size: int, batch_size: int) -> np.ndarray:
    """Returns the order of the training images in one epoch, a row per step.

    Each epoch is a fresh permutation that depends on `seed` and `epoch` alone, with no
    state carried along: epoch 7 can be had without the first six.

    Args:
        seed: of the run, `0..2**64-1`.
        epoch: number of the epoch, `0..2**64-1`.
        size: number of training images.
        batch_size: images per step.

    Returns:
        `[steps,batch_size] int32` with steps = ceil(size / batch_size): every index of
        `range(size)` once; the end of the last row is filled with -1.

    Raises:
        InputError: a value out of its range.
    """
    _check_range("--seed", seed, 0, 2**64 - 1)
    _check_range("epoch", epoch, 0, 2**64 - 1)
    _check_range("--train_size", size, 1, 2**31 - 1)
    _check_range("--batch_size", batch_size, 1, 2**31 - 1)
    # The order of 64 raw random bits per image, which NumPy promises not to change;
    # Generator.permutation has no such promise. 0.8 ms for 60,000 images.
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(size)
    steps = -(-size // batch_size)
    indices = np.full(steps * batch_size, -1, np.int32)
    indices[:size] = np.argsort(bits)
    return indices.reshape(steps, batch_size)


def _check_choice(flag: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuses a name that is not among the allowed ones."""
    if value not in allowed:
        raise InputError(
            f"{flag}={value} is unknown: {', '.join(allowed)} are allowed; choose one"
            " of them."
        )


def _check_range(flag: str, value: int, low: int, high: int) -> None:
    """Refuses a number outside of low..high."""
    if not low <= value <= high:
        raise InputError(
            f"{flag}={value} is out of range: {low}..{high} is allowed; choose a number"
            " in that range."
        )
