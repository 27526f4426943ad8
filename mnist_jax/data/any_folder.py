"""Datasets of any image size and number of classes, from IDX files or an `.npz`."""

import re
from pathlib import Path

import numpy as np
from absl import logging

from mnist_jax.data.idx import READ_ERRORS, read_idx
from mnist_jax.data.types import Dataset, Split
from mnist_jax.errors import InputError

# As of MNIST (both spellings), of EMNIST and QMNIST (with a prefix, and "test").
_FILE = re.compile(
    r"(.*?)-?(train|val|t10k|test)-(images|labels)[-.]idx\d-(?:ubyte|int)(?:\.gz)?"
)
_SPLITS = ("train", "val", "test")
# The arrays of an .npz, as in Keras, by their names in MedMNIST.
_NAMES = {
    f"{split}_{kind}": f"{axis}_{split}"
    for split in _SPLITS
    for axis, kind in (("x", "images"), ("y", "labels"))
}
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
        InputError: files are missing or damaged, or see `Dataset`.
    """
    prefix, arrays = _read_arrays(path, setting)
    splits = [s for s in _SPLITS if s != "val" or {"x_val", "y_val"} & arrays.keys()]
    needed = {k: v for k, v in _NAMES.items() if k.split("_")[0] in splits}
    if missing := [k.replace("_", " ") for k, v in needed.items() if v not in arrays]:
        raise InputError(
            f"{setting}={path} lacks the {' and the '.join(missing)}; give {_NEEDED}"
        )
    images = {split: arrays[f"x_{split}"] for split in splits}
    labels = {split: arrays[f"y_{split}"] for split in splits}
    notes = []
    if prefix.startswith("qmnist") and labels["train"].ndim == 2:
        labels = {split: columns[:, 0] for split, columns in labels.items()}
        notes.append("the labels of QMNIST's files are the first of their 8 columns")
    if prefix.startswith("emnist"):
        images = {k: np.ascontiguousarray(v.swapaxes(1, 2)) for k, v in images.items()}
        notes.append("the images of EMNIST's files are transposed back")
        if low := min(int(values.min()) for values in labels.values()):
            high = max(int(values.max()) for values in labels.values())
            labels = {split: values - low for split, values in labels.items()}
            notes.append(f"the labels {low}..{high} became 0..{high - low}")
    try:
        return Dataset(
            train=Split(images["train"], labels["train"]),
            test=Split(images["test"], labels["test"]),
            validation=Split(images["val"], labels["val"]) if "val" in splits else None,
            class_names=tuple(arrays.get("class_names", ())),
            note=f"idx: {'; '.join(notes)}" if notes else "",
            data_dir=str(path.absolute()),
        )
    except InputError as error:
        raise InputError(f"{setting}={path}: {error}") from None


def _read_arrays(path: Path, setting: str) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the files' prefix, and the arrays by their names in `_NAMES`."""
    folder, wanted = (path, None) if path.is_dir() else (path.parent, path.name)
    if path.is_file():
        return "", _read_archive(path)
    found: dict[str, dict[str, Path]] = {}
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
            name = _NAMES[f"{'test' if name == 't10k' else name}_{kind}"]
            found.setdefault(prefix, {}).setdefault(name, file)
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
    return prefix, {name: read_idx(file) for name, file in files.items()}


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of an `.npz` file by their names in `_NAMES`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = {_NAMES.get(name, name): name for name in archive.files}
            used = names.keys() & {*_NAMES.values(), "class_names"}
            arrays = {name: archive[names[name]] for name in used}
    except (*READ_ERRORS, ValueError, TypeError) as error:
        # NumPy's own message of a ValueError advises to load pickles.
        reason = error if isinstance(error, READ_ERRORS) else "not arrays of numbers"
        raise InputError(
            f"cannot read {path} as an .npz file ({reason}); give {_NEEDED}"
        ) from None
    if unused := sorted(names.keys() - used):
        logging.warning("the arrays %s of %s are not used", ", ".join(unused), path)
    return arrays
