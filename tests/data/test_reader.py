"""The reader of IDX files: valid files give their arrays, all others an InputError."""

import gzip
import hashlib
import random
import struct

import numpy as np
import pytest

from mnist_jax.data.reader import content_sha256, read_idx
from mnist_jax.errors import InputError

IMAGES = np.random.RandomState(0).randint(0, 256, (3, 28, 28)).astype(np.uint8)
LABELS = np.array([7, 0, 9, 3], np.uint8)
IMAGES_IDX = struct.pack(">IIII", 0x803, 3, 28, 28) + IMAGES.tobytes()
LABELS_IDX = struct.pack(">II", 0x801, 4) + LABELS.tobytes()


@pytest.fixture
def read(tmp_path):
    """Returns a function that reads an array from the content of a file."""
    path = tmp_path / "file.gz"
    return lambda content: (path.write_bytes(content), read_idx(path))[1]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_valid_files_give_their_arrays(read, compress):
    for content, expected in ((IMAGES_IDX, IMAGES), (LABELS_IDX, LABELS)):
        array = read(compress(content))
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, expected)
        assert content_sha256(array) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x01" + IMAGES_IDX[2:],
        b"\x00\x00\x07" + LABELS_IDX[3:],
        LABELS_IDX[:6],
        LABELS_IDX[:-1],
        LABELS_IDX + b"1",
        LABELS_IDX[:4] + b"\xff" * 4,
        IMAGES_IDX[:4] + b"\xff" * 12,
    ],
)
def test_other_files_are_rejected_by_name(read, compress, content):
    with pytest.raises(InputError, match=r"file\.gz is not a usable IDX file: "):
        read(compress(content))


def test_damaged_files_raise_only_input_errors(read):
    rng, rejected = random.Random(0), 0
    gzipped = [gzip.compress(content, 1) for content in (IMAGES_IDX, LABELS_IDX)]
    for _ in range(1_000):
        content = bytearray(rng.choice([IMAGES_IDX, LABELS_IDX, *gzipped]))
        for _ in range(rng.randint(1, 3)):
            start = rng.randrange(rng.choice((16, len(content))))
            removed, inserted = rng.randint(0, 4), rng.randint(0, 4)
            content[start : start + removed] = rng.randbytes(inserted)
        compress = rng.choice([bytes, gzip.compress])
        try:
            read(compress(content[: rng.choice((None, rng.randrange(900)))]))
        except InputError:
            rejected += 1
    assert 500 < rejected < 1_000
