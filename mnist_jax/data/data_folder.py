"""Finds the files of a dataset in a folder, in each form that is distributed."""

import contextlib
import os
import zipfile
from pathlib import Path

from mnist_jax.data.checksums import CONTENT_SHA256, SHA256, published_sha256
from mnist_jax.data.download import FILES
from mnist_jax.data.idx import READ_ERRORS, File
from mnist_jax.errors import InputError

Files = tuple[File, ...]  # in the order of `FILES`

# Where torchvision and Keras put the files, below the folder given to them.
SUBFOLDERS = {
    "mnist": ("mnist", "MNIST/raw", "raw"),
    "fashion_mnist": ("fashion_mnist", "fashion-mnist", "FashionMNIST/raw", "raw"),
    "kmnist": ("kmnist", "KMNIST/raw", "raw"),
}
_ARCHIVE = "mnist.npz"  # Keras's file of MNIST
_ARRAYS = ("x_train.npy", "y_train.npy", "x_test.npy", "y_test.npy")

FILES_PHRASE = f"{', '.join(FILES[:-1])} and {FILES[-1]}"
_OTHER_FORMS = "all also without .gz or with names like train-images.idx3-ubyte"


def search_folder(folder: Path, setting: str, name: str) -> Files | None:
    """Returns a set's verified files in a folder or its sub-folders, or None.

    All sets use the same file names, so intact files of another set are skipped.

    Args:
        folder: the folder.
        setting: the flag or variable that names it, for messages.
        name: the set, a key of `SHA256`.

    Raises:
        InputError: the folder does not exist, or files are missing, unreadable or
            damaged.
    """
    if not folder.is_dir():
        raise InputError(
            f"{setting}={folder} is not a folder; give one that holds"
            f" {_accepted(name)}, or leave {setting} out"
        )
    for candidate in (*(folder / sub for sub in SUBFOLDERS[name]), folder):
        if not (files := _find_files(candidate, name)):
            continue
        digests = tuple(_identify(file, setting) for file in files)
        if digests == SHA256[name]:
            return files
        if digests not in SHA256.values():
            rows = zip(files, FILES, digests, SHA256[name], strict=True)
            file, published, got, expected = next(r for r in rows if r[2] != r[3])
            of = "".join(f" of {other}" for other in SHA256 if got in SHA256[other])
            raise InputError(
                f"{file} is truncated, damaged or not from {name}: it has the sha256"
                f" {got}{of}, and its content is not recognized as that of the"
                f" published {published} with the sha256 {expected}; delete it or"
                " replace it with the published file"
            )
    return None


def intact_sets(folder: Path) -> list[str]:
    """Returns the names of the published sets whose files a folder holds."""
    names = []
    for name in SHA256:
        with contextlib.suppress(InputError):
            if search_folder(folder, "", name):
                names.append(name)
    return names


def no_files_error(folder: Path, setting: str, name: str) -> InputError:
    """Returns the error for a folder without a set's files: what it holds instead."""
    if others := intact_sets(folder):
        flags = " or ".join(f"--dataset={other}" for other in others)
        return InputError(
            f"{setting}={folder} holds the files of {' and '.join(others)}, not those"
            f" of {name}; give {flags}, or another folder, or leave {setting} out"
        )
    held = sorted(os.listdir(folder))
    listing = ", ".join(held[:6]) + (f" and {len(held) - 6} more" if held[6:] else "")
    no_files = f"holds no files of {name}, but {listing}" if held else "is empty"
    return InputError(
        f"{setting}={folder} {no_files}; put"
        f" {_accepted(name)} there or in its sub-folder"
        f" {' or '.join(SUBFOLDERS[name])}, or leave {setting} out"
    )


def _accepted(name: str) -> str:
    """Returns the files of a set in all accepted forms, for messages."""
    if name not in CONTENT_SHA256:
        return FILES_PHRASE
    archive = f", or Keras's {_ARCHIVE}" if name == "mnist" else ""
    return f"{FILES_PHRASE} ({_OTHER_FORMS}){archive}"


def _find_files(folder: Path, name: str) -> Files:
    """Returns the four files of a set in a folder, or none if there is none of them.

    Raises:
        InputError: some are missing, or the archive is damaged.
    """
    found = {file: path for file in FILES if (path := _find_form(folder, file))}
    if len(found) == len(FILES):
        return tuple(found.values())
    if name == "mnist" and (folder / _ARCHIVE).is_file():
        return _find_arrays(folder / _ARCHIVE)
    if found:
        missing = [file for file in FILES if file not in found]
        raise InputError(
            f"{folder} lacks {' and '.join(missing)}, and {_accepted(name)} are needed;"
            " copy the missing files there"
        )
    return ()


def _find_arrays(archive: Path) -> Files:
    """Returns the four arrays in Keras's file of MNIST."""
    try:
        root = zipfile.ZipFile(archive)
    except READ_ERRORS as error:
        raise InputError(
            f"cannot read {archive} ({error}); make it readable, or replace it with the"
            " published file"
        ) from None
    arrays = tuple(zipfile.Path(root, array) for array in _ARRAYS)
    if missing := [array.name for array in arrays if not array.is_file()]:
        raise InputError(
            f"{archive} lacks {' and '.join(missing)}; replace it with the published"
            " file"
        )
    return arrays


def _find_form(folder: Path, file: str) -> Path | None:
    """Returns the path of a file under any of its names in a folder, or None."""
    plain = file.removesuffix(".gz")
    dotted = plain.replace("-idx", ".idx")
    names = (file, plain, f"{dotted}.gz", dotted)
    return next((folder / n for n in names if os.path.isfile(folder / n)), None)


def _identify(file: File, setting: str) -> str:
    """Returns the `published_sha256` of a file."""
    try:
        return published_sha256(file)
    except READ_ERRORS as error:
        raise InputError(
            f"cannot read {file} ({error}); make it readable, replace it or give"
            f" another folder with {setting}"
        ) from None
