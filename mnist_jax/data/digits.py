"""The small set of handwritten digits in scikit-learn, in MNIST's format."""

import hashlib
from importlib import metadata

import numpy as np

from mnist_jax.data.array_cache import load_or_build
from mnist_jax.data.types import Dataset, Split


def load_digits(note: str = "") -> Dataset:
    """Loads scikit-learn's digits and puts every fifth of each class in the test set.

    No random generator is involved, so the split is the same in all versions.

    Args:
        note: as in `Dataset`.
    """
    # Importing sklearn.datasets takes 1.4 s, hence the cache. It holds the raw arrays,
    # so that a change of the upsampling below takes effect at once.
    key = f"digits-scikit-learn-{metadata.version('scikit-learn')}"
    rows = load_or_build(key, _read_digits)["rows"]
    images = upsample_digits(rows[:, :64].reshape(-1, 8, 8))
    labels = rows[:, 64].astype(np.int32)
    is_test = np.zeros(len(labels), bool)
    is_test[np.argsort(labels, kind="stable")[::5]] = True
    train = Split(images[~is_test], labels[~is_test])
    test = Split(images[is_test], labels[is_test])
    content = b"".join(array.tobytes() for array in (*train, *test))
    checksum = hashlib.sha256(content).hexdigest()
    return Dataset(train, test, name="digits", checksum=checksum, note=note)


def _read_digits() -> dict[str, np.ndarray]:
    """Returns scikit-learn's digits, `[1797,65] uint8`: 64 pixels 0..16, the label."""
    import sklearn.datasets

    digits = sklearn.datasets.load_digits()
    rows = np.column_stack([digits.data, digits.target])
    return {"rows": rows.astype(np.uint8)}


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
