"""The types of datasets and their splits."""

import dataclasses
import hashlib
import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from mnist_jax.errors import InputError

IMAGE_SHAPE = (28, 28)
CLASSES = 10
MAX_SIDE, MAX_CLASSES = 64, 1_000
DIGITS = tuple("0123456789")
DIGIT_SETS = ("mnist", "digits")


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
    """A dataset with its splits and metadata, checked when it is created.

    A split may be any pair of arrays, lists or pandas objects: images `[N,H,W]` or
    `[N,H,W,1]` of integers 0..255, and integer labels `[N]` or `[N,1]`. Others raise
    InputError.

    >>> images, labels = np.zeros((4, 12, 20), np.uint8), [[0], [1], [1], [0]]
    >>> names = ("cat", "dog")
    >>> Dataset((images, labels), (images, labels), class_names=names).shapes
    Shapes(image=(12, 20), classes=2)
    """

    train: Split
    test: Split
    validation: Split | None = None
    # In the order of the labels; default: the numbers from 0 to the largest label.
    class_names: tuple[str, ...] = ()
    name: str = "idx"  # one of DATASETS without "auto"
    note: str = ""  # empty, or one sentence to print with all results
    data_dir: str | None = None  # where the user said that the files are
    # Set for published sets and splits; `dataclasses.replace` does not copy it.
    known_checksum: str = dataclasses.field(default="", init=False)

    @property
    def classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def shapes(self) -> Shapes:
        """The shape of an image, and the number of classes."""
        return Shapes(self.train.images.shape[1:], self.classes)

    def splits(self) -> dict[str, Split]:
        """Returns the splits that there are, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def checksum(self) -> str:
        """The sha256 of the arrays and their shapes; of a published set, of its files.

        It is computed each time unless it is known: a user may write into the arrays.
        """
        if self.known_checksum:
            return self.known_checksum
        digest = hashlib.sha256()
        for array in itertools.chain(*self.splits().values()):
            digest.update(repr(array.shape).encode())
            digest.update(np.ascontiguousarray(array))
        return digest.hexdigest()

    def __post_init__(self) -> None:
        splits = {name: _check_split(name, *s) for name, s in self.splits().items()}
        sizes = {split.images.shape[1:] for split in splits.values()}
        if len(sizes) > 1 or max(max(size) for size in sizes) > MAX_SIDE:
            raise InputError(
                f"all images must have the same size, with sides of 1..{MAX_SIDE} "
                f"pixels; got {' and '.join(f'{h}x{w}' for h, w in sorted(sizes))}"
            )
        largest = max(int(split.labels.max()) for split in splits.values())
        names = tuple(map(str, self.class_names or range(largest + 1)))
        least = max(2, largest + 1)
        if not least <= len(names) <= MAX_CLASSES:
            raise InputError(
                f"a dataset with labels up to {largest} must have {least}.."
                f"{MAX_CLASSES} classes; got {len(names)}"
            )
        fields = {**splits, "class_names": names}
        for name, value in fields.items():
            object.__setattr__(self, name, value)


def _check_split(name: str, images: ArrayLike, labels: ArrayLike) -> Split:
    """Returns a split of any images and labels; raises InputError as `Dataset`."""
    images = _integers(f"{name} images", images, "N,H,W", 255, np.uint8)
    labels = _integers(f"{name} labels", labels, "N", MAX_CLASSES - 1, np.int32)
    if len(images) != len(labels):
        raise InputError(
            f"the {name} split has {len(images)} images but {len(labels)} labels; give "
            "one label for each image"
        )
    return Split(images, labels)


def _integers(
    what: str, values: ArrayLike, axes: str, high: int, dtype: DTypeLike
) -> np.ndarray:
    """Returns an array of integers 0..high, without a last axis of length 1."""
    array = np.asarray(values)
    got, rank = f"{list(array.shape)} {array.dtype}", axes.count(",") + 1
    if array.ndim == rank + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    fits = array.ndim == rank and array.size > 0 and array.dtype.kind in "iu"
    if fits and (array.min() < 0 or array.max() > high):
        got, fits = f"{array.min()}..{array.max()}", False
    if not fits:
        raise InputError(
            f"the {what} must be integers 0..{high}, [{axes}] or [{axes},1] and not "
            f"empty; got {got}"
        )
    return array.astype(dtype, copy=False)
