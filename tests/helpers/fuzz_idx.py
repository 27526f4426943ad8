"""Fuzzes the IDX reader with damaged and forged files; measures time and memory.

python tests/helpers/fuzz_idx.py --files=100000
"""

import argparse
import gzip
import io
import json
import random
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mnist_jax.data.reader import read_idx
from mnist_jax.errors import InputError
from mnist_jax.profiling.memory import peak_megabytes

COUNTS = (-(2**31), -1, 0, 1, 2, 3, 4, 5, 99_999, 100_000, 100_001, 2**31 - 1)
MAGICS = (0x801, 0x802, 0x803, 0x903, 0xD03, 0x8FF, 0x1F8B0808, 0, -1)
BOMB_SHARE = 0.001


def _header(magic: int, *sizes: int) -> bytes:
    """Returns a header; counts are signed in the format."""
    return struct.pack(f">{1 + len(sizes)}i", magic, *sizes)


def _valid(rng: random.Random, images: bool) -> bytes:
    """Returns a valid file before compression."""
    count = rng.randint(1, 4)
    if images:
        return _header(0x803, count, 28, 28) + rng.randbytes(784 * count)
    return _header(0x801, count) + bytes(rng.randrange(10) for _ in range(count))


def _mutate(rng: random.Random, content: bytes, end: int) -> bytes:
    """Changes, inserts or removes bytes at one to three positions before `end`."""
    mutated = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        position = rng.randrange(max(1, min(end, len(mutated))))
        kind = rng.randrange(3)
        if kind == 0:
            mutated[position : position + 1] = rng.randbytes(1)
        elif kind == 1:
            mutated[position:position] = rng.randbytes(rng.randint(1, 4))
        else:
            del mutated[position : position + rng.randint(1, 4)]
    return bytes(mutated)


def _wrong_magic(rng: random.Random, images: bool) -> bytes:
    content = _header(rng.choice(MAGICS)) + _valid(rng, images)[4:]
    return gzip.compress(content, 1)


def _wrong_count(rng: random.Random, images: bool) -> bytes:
    content = _valid(rng, images)
    sizes = struct.pack(">i", rng.choice((*COUNTS, rng.getrandbits(31))))
    position = rng.choice((4, 8, 12)) if images else 4
    return gzip.compress(content[:position] + sizes + content[position + 4 :], 1)


def _short(rng: random.Random, images: bool) -> bytes:
    content = _valid(rng, images)
    return gzip.compress(content[: rng.randrange(len(content))], 1)


def _trailing(rng: random.Random, images: bool) -> bytes:
    return gzip.compress(_valid(rng, images) + rng.randbytes(rng.randint(1, 900)), 1)


def _header_changed(rng: random.Random, images: bool) -> bytes:
    return gzip.compress(_mutate(rng, _valid(rng, images), 16), 1)


def _items_changed(rng: random.Random, images: bool) -> bytes:
    return gzip.compress(_mutate(rng, _valid(rng, images), 10**9), 1)


def _gzip_changed(rng: random.Random, images: bool) -> bytes:
    return _mutate(rng, gzip.compress(_valid(rng, images), 1), 10**9)


def _gzip_header_changed(rng: random.Random, images: bool) -> bytes:
    return _mutate(rng, gzip.compress(_valid(rng, images), 1), 12)


def _gzip_cut(rng: random.Random, images: bool) -> bytes:
    content = gzip.compress(_valid(rng, images), 1)
    return content[: rng.randrange(len(content))]


def _no_gzip(rng: random.Random, images: bool) -> bytes:
    return _mutate(rng, _valid(rng, images), 16)


KINDS: dict[str, Callable[[random.Random, bool], bytes]] = {
    "valid": lambda rng, images: gzip.compress(_valid(rng, images), 1),
    "wrong magic": _wrong_magic,
    "wrong count": _wrong_count,
    "short body": _short,
    "trailing bytes": _trailing,
    "header changed": _header_changed,
    "items changed": _items_changed,
    "gzip changed": _gzip_changed,
    "gzip header changed": _gzip_header_changed,
    "gzip cut": _gzip_cut,
    "no gzip": _no_gzip,
}


def make_bombs() -> list[bytes]:
    """Returns small files that decompress to, or declare, hundreds of megabytes."""
    many, zeros = 100_000, io.BytesIO()
    with gzip.open(zeros, "wb", 1) as stream:
        for _ in range(300):
            stream.write(bytes(1_000_000))
    headers = [
        _header(0x801, 4),
        _header(0x801, many),
        _header(0x801, -1),
        _header(0x803, 1, 28, 28),
        _header(0x803, many, 28, 28),
        _header(0x803, 2**31 - 1, 28, 28),
        _header(0x803, 1, 2**31 - 1, 2**31 - 1),
        b"",
    ]
    # Two members of one gzip file, which the reader concatenates.
    return [gzip.compress(header) + zeros.getvalue() for header in headers]


def fuzz(files: int, seed: int, folder: Path) -> tuple[dict[str, list[int]], float]:
    """Reads random files and checks that only InputError is raised.

    Args:
        files: number of files; about a thousandth of them are gzip bombs.
        seed: seed of the random generator.
        folder: folder for the file that is read.

    Returns:
        For each kind, the numbers of files rejected and read; the longest time for a
        file, in seconds of CPU time.
    """
    rng, bombs = random.Random(seed), make_bombs()
    counts = {kind: [0, 0] for kind in (*KINDS, "gzip bomb")}
    slowest, path = 0.0, folder / "file.gz"
    for _ in range(files):
        kind, images = rng.choice(list(KINDS)), rng.random() < 0.5
        content = KINDS[kind](rng, images)
        if rng.random() < BOMB_SHARE:
            kind, content = "gzip bomb", rng.choice(bombs)
        path.write_bytes(content)
        start = time.process_time()
        try:
            array = read_idx(path)
        except InputError:
            counts[kind][0] += 1
        else:
            counts[kind][1] += 1
            assert array.dtype == np.uint8 or kind != "valid"
            assert array.shape[1:] == ((28, 28) if images else ()) or kind != "valid"
        slowest = max(slowest, time.process_time() - start)
    return counts, slowest


def main() -> None:
    """Prints the counts, the slowest time and the memory growth as a line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    before = peak_megabytes()
    with tempfile.TemporaryDirectory() as folder:
        counts, slowest = fuzz(arguments.files, arguments.seed, Path(folder))
    grown = peak_megabytes() - before
    print(json.dumps({"counts": counts, "slowest s": slowest, "grown MB": grown}))


if __name__ == "__main__":
    main()
