"""The types of datasets and their splits."""

import dataclasses
import hashlib
from typing import NamedTuple

import numpy as np

from mnist_jax.errors import InputError

IMAGE_SHAPE = (28, 28)
CLASSES = 10
MAX_SIDE, MAX_CLASSES = 64, 1_000
DIGITS = tuple("0123456789")
# The classes of the sets that are not digits, in the order of their labels.
CLASS_NAMES = {
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}


def class_names(dataset: str, classes: int) -> tuple[str, ...]:
    """Returns the names of a dataset's classes, in the order of its labels.

    The classes of a set without names are numbered.
    """
    return CLASS_NAMES.get(dataset) or tuple(map(str, range(classes)))


class Shapes(NamedTuple):
    """What a network must know of its data."""

    image: tuple[int, ...]  # height, width
    classes: int


MNIST = Shapes(IMAGE_SHAPE, CLASSES)


class Split(NamedTuple):
    """Images and their labels in the same order, on the host or on the device."""

    images: np.ndarray  # [N,28,28] or [N,H,W] uint8, 0 is the background
    labels: np.ndarray  # [N] int32, 0..9 or 0..classes-1


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset with its splits and metadata."""

    name: str  # one of DATASETS without "auto"
    train: Split
    validation: Split | None
    test: Split
    checksum: str  # sha256 of the files' sha256 digests, or of the arrays
    note: str  # empty, or one sentence to print with all results
    classes: int = CLASSES
    data_dir: str | None = None  # where the user said that the files are
    # Whether `load_dataset` returned it: `dataclasses.replace` does not copy this.
    loaded: bool = dataclasses.field(default=False, init=False)

    @property
    def shapes(self) -> Shapes:
        """The shape of an image, and the number of classes."""
        return Shapes(self.train.images.shape[1:], self.classes)

    def arrays_sha256(self) -> str:
        """Returns the sha256 of the arrays and their shapes."""
        digest = hashlib.sha256()
        for split in filter(None, (self.train, self.validation, self.test)):
            for array in (split.images, np.asarray(split.labels, np.int32)):
                digest.update(repr(array.shape).encode())
                digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def check(self) -> None:
        """Raises InputError if a split is empty or does not match `Split`."""
        sides = self.train.images.shape[1:]
        if len(sides) != 2 or not all(1 <= side <= MAX_SIDE for side in sides):
            raise InputError(
                f"the train images must be [N,H,W] with sides of 1..{MAX_SIDE} pixels; "
                f"got {list(self.train.images.shape)}"
            )
        if not 2 <= self.classes <= MAX_CLASSES:
            raise InputError(
                f"a dataset must have 2..{MAX_CLASSES} classes; got {self.classes}"
            )
        for name in ("train", "validation", "test"):
            split: Split | None = getattr(self, name)
            if split is None:
                continue
            images, labels = split
            if images.dtype != np.uint8 or images.shape != (len(labels), *sides):
                raise InputError(
                    f"the {name} images must be [{len(labels)},{sides[0]},{sides[1]}] "
                    f"uint8, one for each label; got {list(images.shape)} "
                    f"{images.dtype}"
                )
            if not len(labels):
                raise InputError(f"the {name} split is empty; give at least one image")
            low, high = labels.min(), labels.max()
            if labels.dtype.kind not in "iu" or low < 0 or high >= self.classes:
                raise InputError(
                    f"the {name} labels must be integers 0..{self.classes - 1}; got "
                    f"{labels.dtype} {low}..{high}"
                )
