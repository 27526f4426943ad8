"""The cache of decoded arrays: hits, damage and permissions."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.small_sets import assert_equal_sets, copy_from, no_call

from mnist_jax.data import datasets
from mnist_jax.data.cache import cache_dir
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.published import SETS

pytestmark = pytest.mark.usefixtures("isolated_folders")


def test_cache_dir_follows_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_dir() == Path(os.environ["MNIST_JAX_CACHE_DIR"])
    monkeypatch.setenv("MNIST_JAX_CACHE_DIR", "")
    assert cache_dir() == Path("/xdg/mnist_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path("/home/someone/.cache/mnist_jax")


def test_a_second_load_decodes_nothing(small_sets, monkeypatch):
    first = load_dataset("mnist", small_sets["mnist"])
    monkeypatch.setattr(datasets, "read_arrays", no_call)
    assert_equal_sets(load_dataset("mnist", small_sets["mnist"]), first)
    assert_equal_sets(load_dataset("mnist"), first)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:500] + bytes([content[500] ^ 8]) + content[501:],
        lambda content: content.replace(b"(50,", b"(51,", 1),
        lambda content: b"junk",
    ],
)
def test_a_damaged_cache_entry_is_rebuilt(small_sets, caplog, damage):
    first = load_dataset("mnist", small_sets["mnist"])
    entry = cache_dir() / "arrays" / f"{SETS['mnist'].checksum}.npz"
    entry.write_bytes(damage(entry.read_bytes()))
    assert_equal_sets(load_dataset("mnist", small_sets["mnist"]), first)
    [message] = caplog.messages
    assert str(entry) in message and "is damaged" in message
    np.testing.assert_array_equal(np.load(entry)["x_train"], first.train.images)


def test_an_unwritable_cache_gives_a_warning(small_sets, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(datasets, "download_files", copy_from(small_sets))
    (tmp_path / "cache").write_text("in the way")
    dataset = load_dataset("mnist")
    assert_equal_sets(dataset, load_dataset("mnist", small_sets["mnist"]))
    assert "cannot cache" in caplog.text
