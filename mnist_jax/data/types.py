"""What a data set is, as the rest of the package uses it."""

import dataclasses
from typing import NamedTuple

import numpy as np


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
