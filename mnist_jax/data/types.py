"""The types of datasets and their splits."""

import dataclasses
from typing import NamedTuple

import numpy as np

IMAGE_SHAPE = (28, 28)
CLASSES = 10


class Split(NamedTuple):
    """Images and their labels in the same order, on the host or on the device."""

    images: np.ndarray  # [N,28,28] uint8, 0 is the background
    labels: np.ndarray  # [N] int32, 0..9


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset as a run uses it, with what its record says about it."""

    name: str  # one of DATASETS without "auto"
    train: Split
    validation: Split | None
    test: Split
    checksum: str  # sha256 of the files' sha256 digests, or of the digits' arrays
    note: str  # empty, or one sentence to print with all results
