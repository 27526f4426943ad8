"""The cache of decoded arrays: hits, damage, concurrency and permissions."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import run_at_once
from helpers.small_sets import assert_equal_sets, copy_from, files_below, no_call

from mnist_jax.data import datasets
from mnist_jax.data.array_cache import cache_dir
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.published import SETS

pytestmark = pytest.mark.usefixtures("isolated_folders")


def test_cache_dir_follows_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_dir() == Path(os.environ["MNIST_JAX_CACHE_DIR"])
    monkeypatch.setenv("MNIST_JAX_CACHE_DIR", "")
    assert cache_dir() == Path("/xdg/mnist_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "~/xdg")
    assert cache_dir() == Path("/home/someone/xdg/mnist_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path("/home/someone/.cache/mnist_jax")


def test_a_second_load_decodes_nothing(small_sets, monkeypatch):
    first = load_dataset("mnist", small_sets["mnist"], no_call)
    monkeypatch.setattr(datasets, "read_arrays", no_call)
    assert_equal_sets(load_dataset("mnist", small_sets["mnist"], no_call), first)
    assert_equal_sets(load_dataset("mnist", download=no_call), first)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:1000],
        lambda content: content[:500] + bytes([content[500] ^ 8]) + content[501:],
        lambda content: content.replace(b"(50,", b"(51,", 1),
        lambda content: b"junk",
    ],
)
def test_a_damaged_cache_entry_is_rebuilt(small_sets, caplog, damage):
    first = load_dataset("mnist", small_sets["mnist"], no_call)
    entry = cache_dir() / "arrays" / f"{SETS['mnist'].checksum}.npz"
    entry.write_bytes(damage(entry.read_bytes()))
    assert_equal_sets(load_dataset("mnist", small_sets["mnist"], no_call), first)
    [message] = caplog.messages
    assert str(entry) in message and "is damaged" in message
    np.testing.assert_array_equal(np.load(entry)["x_train"], first.train.images)


@pytest.mark.parametrize("obstacle", ["file", "read-only folder"])
def test_an_unwritable_cache_gives_a_warning(small_sets, tmp_path, caplog, obstacle):
    if obstacle == "file":
        (tmp_path / "cache").write_text("in the way")
    else:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache").chmod(stat.S_IRUSR | stat.S_IXUSR)
        if os.access(tmp_path / "cache", os.W_OK):
            pytest.skip("this user may write to any folder")
    dataset = load_dataset("mnist", download=copy_from(small_sets))
    assert_equal_sets(dataset, load_dataset("mnist", small_sets["mnist"], no_call))
    assert load_dataset("digits").name == "digits"
    assert "cannot write to the cache folder" in caplog.text


def test_an_interrupted_write_leaves_no_file(small_sets, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("mnist", small_sets["mnist"], no_call)
    assert list((cache_dir() / "arrays").iterdir()) == []


# Loads the small set with an empty cache.
LOAD = """
import shutil, sys, time
from pathlib import Path
import sklearn.datasets  # once, not in each process
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.published import FILES, SETS

source, calls = map(Path, sys.argv[1:3])
SETS["mnist"] = SETS["mnist"]._replace(sha256=tuple(sys.argv[3:]))

def download(name, folder):
    with open(calls, "a") as file:
        file.write("x")
    for file in FILES.values():
        shutil.copy(source / file, folder / file)
        time.sleep(0.05)

def work(process):
    dataset = load_dataset("mnist", download=download)
    assert int(dataset.train.images.sum()) > 0
    assert load_dataset("digits").train.images.shape == (1437, 28, 28)
"""


def test_eight_processes_fill_an_empty_cache_with_one_download(small_sets, tmp_path):
    calls = tmp_path / "calls"
    run_at_once(LOAD, small_sets["mnist"], calls, *SETS["mnist"].sha256)
    assert calls.read_text() == "x"
    # The set and scikit-learn's digits; no partial files.
    assert len(files_below(cache_dir() / "arrays")) == 2
    expected = load_dataset("mnist", small_sets["mnist"], no_call)
    assert_equal_sets(load_dataset("mnist", download=no_call), expected)
