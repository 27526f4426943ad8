"""Datasets of any image size and number of classes, from IDX files or an `.npz`."""

import dataclasses
import re
from pathlib import Path

import numpy as np

from mnist_jax.data.idx import READ_ERRORS, read_idx
from mnist_jax.data.types import MAX_CLASSES, MAX_SIDE, Dataset, Split
from mnist_jax.errors import InputError

# As of MNIST (both spellings), of EMNIST and QMNIST (with a prefix, and "test").
_FILE = re.compile(
    r"(.*?)-?(train|t10k|test)-(images|labels)[-.]idx\d-(?:ubyte|int)(?:\.gz)?"
)
_NAMES = ("x_train", "y_train", "x_test", "y_test")  # in an .npz, as in Keras
_SETS = ("train", "test")
_ROLES = tuple((s, kind) for s in _SETS for kind in ("images", "labels"))
_NEEDED = (
    "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and "
    "t10k-labels-idx1-ubyte (gzipped or not, with a prefix such as emnist-letters- or "
    "without), or an .npz file with x_train, y_train, x_test and y_test"
)


def load_any(path: Path, setting: str) -> Dataset:
    """Loads the dataset of a folder or an `.npz` file.

    Args:
        path: a folder with four IDX files or one `.npz` file; such a file; or a folder
            of several sets and the prefix of one, as in `gzip/emnist-letters`.
        setting: the flag or variable that gives it, for messages.

    Returns:
        The dataset, with the sha256 of its arrays and a note on what was changed.

    Raises:
        InputError: files are missing or damaged, or hold other than grey images of
            1..64 pixels a side and labels of 2..1000 classes.
    """
    prefix, arrays = _read_arrays(path, setting)
    labels = {name: _check_labels(*arrays[name, "labels"], prefix) for name in _SETS}
    images = {name: _check_images(*arrays[name, "images"]) for name in _SETS}
    notes = []
    if prefix.startswith("emnist"):
        images = {k: np.ascontiguousarray(v.swapaxes(1, 2)) for k, v in images.items()}
        notes.append("the images of EMNIST's files are transposed back")
    if any(arrays[name, "labels"][1].ndim == 2 for name in _SETS):
        notes.append("the labels of QMNIST's files are the first of their 8 columns")
    low = min(values.min() for values in labels.values())
    high = max(values.max() for values in labels.values())
    if low > 0 and prefix.startswith("emnist"):
        labels = {name: values - low for name, values in labels.items()}
        notes.append(f"the labels {low}..{high} became 0..{high - low}")
    elif low > 0:
        notes.append(f"the labels start at {low}, so the classes below have no images")
    classes = int(max(values.max() for values in labels.values())) + 1
    if not 2 <= classes <= MAX_CLASSES:
        raise InputError(
            f"{setting}={path} has labels {low}..{high}, which are {classes} classes; "
            f"give labels from 0 to at least 1 and at most {MAX_CLASSES - 1}"
        )
    for name in _SETS:
        if (count := len(images[name])) != len(labels[name]):
            raise InputError(
                f"{setting}={path} has {count} {name} images but {len(labels[name])} "
                "labels; give one label for each image"
            )
    if (shape := images["train"].shape[1:]) != images["test"].shape[1:]:
        raise InputError(
            f"{setting}={path} has train images of {'x'.join(map(str, shape))} and "
            f"test images of {'x'.join(map(str, images['test'].shape[1:]))}; give all "
            "the same size"
        )
    train, test = (Split(images[name], labels[name]) for name in _SETS)
    note = f"idx: {'; '.join(notes)}" if notes else ""
    dataset = Dataset("idx", train, None, test, "", note, classes, str(path.absolute()))
    return dataclasses.replace(dataset, checksum=dataset.arrays_sha256())


def _read_arrays(
    path: Path, setting: str
) -> tuple[str, dict[tuple[str, str], tuple[str, np.ndarray]]]:
    """Returns the files' prefix, and each array with the name of its file."""
    folder, wanted = (path, None) if path.is_dir() else (path.parent, path.name)
    if path.is_file():
        return "", _read_archive(path)
    found: dict[str, dict[tuple[str, str], Path]] = {}
    try:
        names = sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []
    except OSError as error:
        raise InputError(
            f"cannot read {setting}={path} ({error.strerror}); make it readable, or "
            "give another folder"
        ) from None
    for file in names:  # .gz first
        if (match := _FILE.fullmatch(file.name)) and file.is_file():
            prefix, name, kind = match.groups()
            role = ("train" if name == "train" else "test", kind)
            found.setdefault(prefix, {}).setdefault(role, file)
    if wanted is not None:
        found = {wanted: found[wanted]} if wanted in found else {}
    archives = [file for file in names if file.suffix == ".npz"]
    if not found and wanted is None and archives:
        if len(archives) > 1:
            raise InputError(
                f"{setting}={path} holds {len(archives)} .npz files "
                f"({', '.join(sorted(file.name for file in archives))}); give one, as "
                f"in {setting}={min(archives)}"
            )
        return "", _read_archive(archives[0])
    if len(found) > 1:
        raise InputError(
            f"{setting}={path} holds several datasets ({', '.join(sorted(found))}); "
            f"give one by its prefix, as in {setting}={path / max(found)}"
        )
    if not found:
        raise InputError(
            f"{setting}={path} holds no dataset of IDX files; give a folder that holds "
            f"{_NEEDED}"
        )
    [(prefix, files)] = found.items()
    if missing := [f"{s} {kind}" for s, kind in _ROLES if (s, kind) not in files]:
        raise InputError(
            f"{setting}={path} lacks the {' and the '.join(missing)}; {_NEEDED} are "
            "needed"
        )
    return prefix, {role: (str(files[role]), read_idx(files[role])) for role in _ROLES}


def _read_archive(path: Path) -> dict[tuple[str, str], tuple[str, np.ndarray]]:
    """Returns the arrays of an `.npz` file, by their role, with a name."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in _NAMES if name not in archive]
            found = {name: archive[name] for name in _NAMES if name not in missing}
    except (*READ_ERRORS, ValueError, TypeError) as error:
        raise InputError(
            f"cannot read {path} as an .npz file ({error}); give one with the arrays "
            f"{', '.join(_NAMES)}"
        ) from None
    if missing:
        raise InputError(
            f"{path} lacks {' and '.join(missing)}; give an .npz file with the arrays "
            f"{', '.join(_NAMES)}"
        )
    named = [(f"{name} of {path}", found[name]) for name in _NAMES]
    return dict(zip(_ROLES, named, strict=True))


def _check_images(name: str, images: np.ndarray) -> np.ndarray:
    """Returns images `[N,H,W] uint8`; raises InputError if they are none."""
    if images.ndim == 4:
        raise InputError(
            f"{name} holds images {list(images.shape)}, with channels; only grey "
            "images [N,H,W] are supported, so convert them to grey"
        )
    sides = images.shape[1:]
    if images.ndim != 3 or not all(1 <= side <= MAX_SIDE for side in sides):
        raise InputError(
            f"{name} holds an array {list(images.shape)}; give images [N,H,W] with "
            f"sides of 1..{MAX_SIDE} pixels"
        )
    if images.dtype != np.uint8:
        raise InputError(
            f"{name} holds pixels of type {images.dtype}; give uint8 from 0 for the "
            "background to 255"
        )
    if not len(images):
        raise InputError(f"{name} holds no images; give at least one")
    return images


def _check_labels(name: str, labels: np.ndarray, prefix: str) -> np.ndarray:
    """Returns labels `[N] int32`; raises InputError if they are none."""
    if prefix.startswith("qmnist") and labels.ndim == 2 and labels.shape[1] == 8:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise InputError(
            f"{name} holds labels {list(labels.shape)} of type {labels.dtype}; give "
            "integers [N]"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > MAX_CLASSES:
        raise InputError(
            f"{name} holds labels {low}..{high}; give integers from 0 to at most "
            f"{MAX_CLASSES - 1}"
        )
    return labels.astype(np.int32)
