"""The cache of decoded arrays: hits, damage, concurrency and permissions."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import AT_ONCE, run_python
from helpers.small_sets import assert_equal_sets, copy_from, files_below, no_call

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


# Loads the small set with an empty cache.
LOAD = """
import shutil, sys, time
from pathlib import Path
from mnist_jax.data import datasets
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.published import FILES, SETS

SETS["mnist"] = SETS["mnist"]._replace(sha256=tuple(sys.argv[2:]))

def download(name, folder):
    for file in FILES.values():
        shutil.copy(Path(sys.argv[1]) / file, folder / file)

datasets.download_files = download

def work(process):
    dataset = load_dataset("mnist")
    assert int(dataset.train.images.sum()) > 0
"""


def test_eight_processes_fill_an_empty_cache(small_sets):
    run_python("-c", LOAD + AT_ONCE, small_sets["mnist"], *SETS["mnist"].sha256)
    assert len(files_below(cache_dir())) == 1  # no partial files
    expected = load_dataset("mnist", small_sets["mnist"])
    assert_equal_sets(load_dataset("mnist"), expected)
