"""The types of datasets and their splits."""

import dataclasses
from typing import NamedTuple

import numpy as np

from mnist_jax.errors import InputError

IMAGE_SHAPE = (28, 28)
CLASSES = 10
DIGITS = tuple("0123456789")
# The classes of the sets that are not digits, in the order of their labels.
CLASS_NAMES = {
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}


def class_names(dataset: str) -> tuple[str, ...]:
    """Returns the names of a dataset's ten classes, in the order of its labels."""
    return CLASS_NAMES.get(dataset, DIGITS)


class Split(NamedTuple):
    """Images and their labels in the same order, on the host or on the device."""

    images: np.ndarray  # [N,28,28] uint8, 0 is the background
    labels: np.ndarray  # [N] int32, 0..9


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset with its splits and metadata."""

    name: str  # one of DATASETS without "auto"
    train: Split
    validation: Split | None
    test: Split
    checksum: str  # sha256 of the files' sha256 digests, or of the digits' arrays
    note: str  # empty, or one sentence to print with all results

    def check(self) -> None:
        """Raises InputError if a split is empty or does not match `Split`."""
        for name in ("train", "validation", "test"):
            split: Split | None = getattr(self, name)
            if split is None:
                continue
            images, labels = split
            if images.dtype != np.uint8 or images.shape != (len(labels), *IMAGE_SHAPE):
                raise InputError(
                    f"the {name} images must be [{len(labels)},28,28] uint8, one for "
                    f"each label; got {list(images.shape)} {images.dtype}"
                )
            if not len(labels):
                raise InputError(f"the {name} split is empty; give at least one image")
            low, high = labels.min(), labels.max()
            if labels.dtype.kind not in "iu" or low < 0 or high >= CLASSES:
                raise InputError(
                    f"the {name} labels must be integers 0..{CLASSES - 1}; got "
                    f"{labels.dtype} {low}..{high}"
                )
