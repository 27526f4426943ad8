"""The reader of IDX files: valid files give their arrays, all others an InputError."""

import gzip
import hashlib
import json
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from helpers.fuzz_idx import fuzz

from mnist_jax.data.reader import content_sha256, read_idx
from mnist_jax.errors import InputError

IMAGES = np.random.RandomState(0).randint(0, 256, (3, 28, 28)).astype(np.uint8)
LABELS = np.array([7, 0, 9, 3], np.uint8)
IMAGES_IDX = struct.pack(">IIII", 0x803, 3, 28, 28) + IMAGES.tobytes()
LABELS_IDX = struct.pack(">II", 0x801, 4) + LABELS.tobytes()


def write(folder, content):
    """Writes bytes to a file and returns its path."""
    path = folder / "file.gz"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_valid_files_give_their_arrays(tmp_path, compress):
    for content, expected in ((IMAGES_IDX, IMAGES), (LABELS_IDX, LABELS)):
        array = read_idx(write(tmp_path, compress(content)))
        assert array.dtype == np.uint8
        np.testing.assert_array_equal(array, expected)
        assert content_sha256(array) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "requires a buffer of 4 bytes"),
        (b"\x00\x01" + IMAGES_IDX[2:], "header is not that of an IDX file"),
        (b"\x00\x00\x07" + LABELS_IDX[3:], "header is not that of an IDX file"),
        (LABELS_IDX[:3] + b"\x00", "header is not that of an IDX file"),
        (LABELS_IDX[:6], "requires a buffer of 4 bytes"),
        (LABELS_IDX[:-1], "holds 3 bytes, not the declared 4"),
        (LABELS_IDX + b"1", "holds more bytes, not the declared 4"),
        (LABELS_IDX[:4] + b"\xff" * 4, "holds 0 bytes, not the declared 4294967295"),
        (IMAGES_IDX[:4] + b"\xff" * 12, "bytes, not 4 GB"),
    ],
)
def test_other_files_are_rejected_with_the_reason(tmp_path, compress, content, reason):
    path = write(tmp_path, compress(content))
    with pytest.raises(InputError, match=f"{path} .*{reason}"):
        read_idx(path)


def test_damaged_gzip_is_rejected(tmp_path):
    whole = gzip.compress(LABELS_IDX)
    wrong_crc = whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:]
    for content in (whole[:-1], whole[:12], whole + b"x", wrong_crc):
        path = write(tmp_path, content)
        with pytest.raises(InputError, match="file.gz is not a usable IDX file"):
            read_idx(path)


def test_a_gzip_bomb_is_rejected_in_little_memory(tmp_path):
    # 200 MB of zeros after a correct count, in a file of 200 kB.
    bomb = write(tmp_path, gzip.compress(LABELS_IDX + bytes(200_000_000), 1))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="more bytes"):
            read_idx(bomb)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_thousand_damaged_files_raise_only_input_errors(tmp_path):
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
