"""Fixtures shared by the tests of datasets."""

import hashlib
from pathlib import Path

import pytest
from helpers.small_sets import write_small_set

from mnist_jax.data import datasets
from mnist_jax.data.download import FILES


@pytest.fixture
def isolated_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives a test its own cache folder and unsets MNIST_JAX_DATA_DIR."""
    monkeypatch.setenv("MNIST_JAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MNIST_JAX_DATA_DIR", raising=False)


@pytest.fixture
def small_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Replaces all published sets with small ones and returns their folders."""
    folders = {}
    for seed, name in enumerate(datasets.SHA256):
        folders[name] = tmp_path / "small" / name
        write_small_set(folders[name], seed)
        digests = tuple(
            hashlib.sha256((folders[name] / file).read_bytes()).hexdigest()
            for file in FILES
        )
        monkeypatch.setitem(datasets.SHA256, name, digests)
    return folders
