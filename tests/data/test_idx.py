"""The IDX reader: valid files give their arrays, all others an IdxError."""

import gzip
import hashlib
import io
import json
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers.fuzz_idx import fuzz

from mnist_jax.data import idx

IMAGES = np.random.RandomState(0).randint(0, 256, (3, 28, 28)).astype(np.uint8)
LABELS = np.array([7, 0, 9, 3], np.uint8)
IMAGES_IDX = struct.pack(">IIII", 0x803, 3, 28, 28) + IMAGES.tobytes()
LABELS_IDX = struct.pack(">II", 0x801, 4) + LABELS.tobytes()


def write(folder, content):
    """Writes bytes to a file and returns its path."""
    path = folder / "file.gz"
    path.write_bytes(content)
    return path


def as_npy(array):
    """Returns an array in NumPy's format."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_valid_files_give_their_arrays(tmp_path):
    images = idx.read_idx(write(tmp_path, gzip.compress(IMAGES_IDX)))
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, IMAGES)
    for content in (LABELS_IDX, gzip.compress(LABELS_IDX), as_npy(LABELS)):
        labels = idx.read_idx(write(tmp_path, content))
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, LABELS)
        assert idx.content_sha256(tmp_path / "file.gz") == (
            hashlib.sha256(LABELS_IDX).hexdigest()
        )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "starts with 0x,"),
        (b"\x00\x01" + IMAGES_IDX[2:], "starts with 0x00010803, not with 0x0000"),
        (b"\x00\x00\x07" + LABELS_IDX[3:], "starts with 0x00000701, not with 0x0000"),
        (LABELS_IDX[:3] + b"\x00", "header is cut off"),
        (LABELS_IDX[:6], "header is cut off"),
        (LABELS_IDX[:-1], "holds 3 bytes of items, not the declared 4"),
        (LABELS_IDX + b"\0", "holds more bytes of items, not the declared 4"),
        (IMAGES_IDX[:-784], "holds 1568 bytes of items, not the declared 2352"),
        (IMAGES_IDX + IMAGES_IDX, "holds more bytes of items, not the declared 2352"),
        (struct.pack(">Ii", 0x801, -1) + bytes(9), "holds 9 bytes of items, not the"),
        (struct.pack(">IIII", 0x803, 1, -1 % 2**32, 28), "not 4 GB at most"),
    ],
)
def test_malformed_files_are_rejected_with_the_reason(tmp_path, content, reason):
    for form in (content, gzip.compress(content)):
        path = write(tmp_path, form)
        with pytest.raises(idx.IdxError) as caught:
            idx.read_idx(path)
        assert reason in str(caught.value)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (as_npy(LABELS)[:-1], "holds 3 bytes of items, not the declared 4"),
        (as_npy(LABELS)[:60], "header is damaged"),
        (as_npy(LABELS.astype(np.float32)), "is an array of float32, shape [4]"),
        (as_npy(np.zeros((2, 0), np.uint8)), "is an array of uint8, shape [2, 0]"),
    ],
)
def test_other_numpy_arrays_are_rejected_with_the_reason(tmp_path, content, reason):
    with pytest.raises(idx.IdxError) as caught:
        idx.read_idx(write(tmp_path, content))
    assert reason in str(caught.value)


def test_damaged_gzip_is_rejected(tmp_path):
    whole = gzip.compress(LABELS_IDX)
    wrong_crc = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    for content in (b"", whole[:-1], whole[:12], whole + b"x", wrong_crc):
        path = write(tmp_path, content)
        with pytest.raises(idx.IdxError):
            idx.read_idx(path)


def test_a_file_that_cannot_be_opened_is_rejected(tmp_path):
    for path in (tmp_path, tmp_path / "missing.gz"):
        with pytest.raises(idx.IdxError, match="cannot be read"):
            idx.read_idx(path)


def test_a_gzip_bomb_is_rejected_in_little_memory(tmp_path):
    # 200 MB of zeros after a correct count, in a file of 200 kB.
    bomb = write(tmp_path, gzip.compress(LABELS_IDX + bytes(200_000_000), 1))
    tracemalloc.start()
    try:
        with pytest.raises(idx.IdxError, match="more bytes"):
            idx.read_idx(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_thousand_damaged_files_raise_only_idx_errors(tmp_path):
    counts, slowest = fuzz(1_000, 1, tmp_path)
    assert all(rejected for kind, (rejected, _) in counts.items() if kind != "valid")
    rejected, read = counts["valid"]
    assert rejected == 0 and read > 0
    assert slowest < 10


@pytest.mark.faults
def test_a_hundred_thousand_damaged_files_take_little_time_and_memory(record_property):
    command = [
        sys.executable,
        "tests/helpers/fuzz_idx.py",
        "--files=100000",
        "--seed=1",
    ]
    root = Path(__file__).parents[2]
    process = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout)
    for kind, (rejected, read) in result["counts"].items():
        print(f"{kind}: {rejected:,} rejected, {read:,} read")
    files = sum(map(sum, result["counts"].values()))
    record_property("mutated files", files)
    record_property("mutated files: gzip bombs", sum(result["counts"]["gzip bomb"]))
    record_property("mutated files: slowest, ms", round(1000 * result["slowest s"]))
    record_property("mutated files: memory grown, MB", round(result["grown MB"]))
    assert files == 100_000
    assert result["slowest s"] < 10 and result["grown MB"] < 150
