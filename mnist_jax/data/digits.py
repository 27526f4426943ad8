"""The small set of handwritten digits in scikit-learn, in MNIST's format."""

import importlib.util
from pathlib import Path

import numpy as np

from mnist_jax.data.types import Dataset, Split


def load_digits(note: str = "") -> Dataset:
    """Loads scikit-learn's digits and puts every fifth of each class in the test set.

    No random generator is involved, so the split is the same in all versions.
    """
    # Not by sklearn.datasets, which takes 1.4 s to import.
    spec = importlib.util.find_spec("sklearn")
    assert spec and spec.origin
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    rows = np.loadtxt(file, np.uint8, delimiter=",")  # [1797,65]: 64 pixels, the label
    images, labels = upsample_digits(rows[:, :64].reshape(-1, 8, 8)), rows[:, 64]
    is_test = np.zeros(len(labels), bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    train = Split(images[~is_test], labels[~is_test])
    test = Split(images[is_test], labels[is_test])
    return Dataset(train, test, name="digits", note=note)


def upsample_digits(digits: np.ndarray) -> np.ndarray:
    """Converts `[N,8,8]` digits of 0..16 to `[N,28,28] uint8` of 0..255, like MNIST's.

    The 8x8 digits fill their frame as MNIST's fill the central 20x20, so they are
    resized to 20x20 by bilinear interpolation (pixel centres, edges repeated) and
    padded by 4. Integer arithmetic gives the same bytes on every machine.
    """
    centres = np.clip(4 * np.arange(20) - 3, 0, 70)  # in tenths of an 8x8 pixel
    weights = np.zeros((20, 8), np.int64)  # in tenths
    weights[np.arange(20), centres // 10] += 10 - centres % 10
    weights[np.arange(20), np.minimum(centres // 10 + 1, 7)] += centres % 10
    hundredths = weights @ digits.astype(np.int64) @ weights.T  # [N,20,20], 0..1600
    pixels = ((hundredths * 255 + 800) // 1600).astype(np.uint8)  # rounded
    return np.pad(pixels, ((0, 0), (4, 4), (4, 4)))
