"""Fixtures shared by the tests of datasets."""

import gzip
import hashlib
from collections.abc import Iterable
from pathlib import Path

import pytest
from helpers.small_sets import write_small_set

from mnist_jax.data.checksums import CONTENT_SHA256, SHA256
from mnist_jax.data.download import FILES


@pytest.fixture
def isolated_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives a test its own cache folder and unsets MNIST_JAX_DATA_DIR."""
    monkeypatch.setenv("MNIST_JAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MNIST_JAX_DATA_DIR", raising=False)


def digests(contents: Iterable[bytes]) -> tuple[str, ...]:
    """Returns the sha256 of each content."""
    return tuple(hashlib.sha256(content).hexdigest() for content in contents)


@pytest.fixture
def small_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Replaces all published sets with small ones and returns their folders."""
    folders = {}
    for seed, name in enumerate(SHA256):
        folders[name] = tmp_path / "small" / name
        write_small_set(folders[name], seed)
        published = [(folders[name] / file).read_bytes() for file in FILES]
        monkeypatch.setitem(SHA256, name, digests(published))
        if name in CONTENT_SHA256:
            contents = digests(map(gzip.decompress, published))
            monkeypatch.setitem(CONTENT_SHA256, name, contents)
    return folders
