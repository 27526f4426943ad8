"""Fixtures shared by the tests of datasets."""

import gzip
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from helpers.small_sets import no_call, write_idx_set

from mnist_jax.data import datasets
from mnist_jax.data.published import FILES, SETS


@pytest.fixture
def isolated_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives a test its own cache folder, no MNIST_JAX_DATA_DIR and no downloads."""
    monkeypatch.setattr(datasets, "download_files", no_call)
    monkeypatch.setenv("MNIST_JAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MNIST_JAX_DATA_DIR", raising=False)


def digests(contents: Iterable[bytes]) -> tuple[str, ...]:
    """Returns the sha256 of each content."""
    return tuple(hashlib.sha256(content).hexdigest() for content in contents)


@pytest.fixture
def small_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Replaces the published sets with 50 and 20 images, and returns their folders."""
    folders = {}
    for seed, (name, published) in enumerate(SETS.items()):
        folders[name] = tmp_path / "small" / name
        rng, arrays = np.random.RandomState(seed), {}
        for split, count in (("train", 50), ("test", 20)):
            images = rng.randint(0, 256, (count, 28, 28))
            arrays[f"x_{split}"] = images.astype(np.uint8)
            arrays[f"y_{split}"] = rng.randint(0, 10, count).astype(np.uint8)
        write_idx_set(folders[name], arrays)
        files = [(folders[name] / file).read_bytes() for file in FILES.values()]
        small = published._replace(sha256=digests(files))
        if any(published.content_sha256):
            content = digests(map(gzip.decompress, files))
            small = small._replace(content_sha256=content)
        monkeypatch.setitem(SETS, name, small)
    return folders
