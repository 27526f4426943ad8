"""Data sets: the search for files, downloads, and errors."""

import hashlib
import os
import shutil
import time

import numpy as np
import pytest
from helpers.processes import run_script
from helpers.small_sets import (
    assert_equal_sets,
    copy_from,
    files_below,
    no_call,
    no_network,
)

from mnist_jax.data import datasets
from mnist_jax.data.array_cache import cache_dir
from mnist_jax.data.checksums import SHA256
from mnist_jax.data.data_folder import SUBFOLDERS
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.download import FILES, URLS, DownloadError
from mnist_jax.data.pixels import pixel_statistics
from mnist_jax.errors import InputError

DATA_DIR = os.environ.get("MNIST_JAX_DATA_DIR")
needs_mnist = pytest.mark.skipif(
    not DATA_DIR, reason="needs MNIST in MNIST_JAX_DATA_DIR"
)
pytestmark = pytest.mark.usefixtures("isolated_folders")


def snapshot(folder):
    """Returns names, contents and times of all files in a folder."""
    return {
        path: (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in [folder, *folder.rglob("*")]
    }


# Where the files come from


def test_files_are_decoded_and_nothing_is_written_next_to_them(small_sets):
    before = snapshot(small_sets["mnist"])
    dataset = load_dataset("mnist", small_sets["mnist"], no_call)
    assert (dataset.name, dataset.validation, dataset.note) == ("mnist", None, "")
    assert dataset.train.images.shape == (50, 28, 28)
    assert dataset.test.images.shape == (20, 28, 28)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.dtype == np.int32
    rng = np.random.RandomState(0)  # as in write_small_set
    np.testing.assert_array_equal(
        dataset.train.images, rng.randint(0, 256, (50, 28, 28))
    )
    np.testing.assert_array_equal(dataset.train.labels, rng.randint(0, 10, 50))
    assert snapshot(small_sets["mnist"]) == before
    checksum = hashlib.sha256("".join(SHA256["mnist"]).encode()).hexdigest()
    assert dataset.checksum == checksum


def test_data_dir_precedes_the_environment_which_precedes_downloads(
    small_sets, tmp_path, monkeypatch
):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(small_sets["mnist"], elsewhere / "mnist")
    folders = []
    decode_files = datasets._decode_files

    def decode(name, files, *folder):
        folders.append(files[0].parent)
        return decode_files(name, files, *folder)

    monkeypatch.setattr(datasets, "_decode_files", decode)
    assert load_dataset("mnist", download=copy_from(small_sets)).data_dir is None
    assert load_dataset("mnist", download=no_call).data_dir is None
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(small_sets["mnist"]))
    assert load_dataset("mnist", download=no_call).data_dir == str(small_sets["mnist"])
    assert load_dataset("mnist", elsewhere, no_call).data_dir == str(elsewhere)
    downloads = cache_dir() / "downloads" / "mnist"
    assert folders[1:] == [downloads, small_sets["mnist"], elsewhere / "mnist"]


def test_one_folder_serves_all_sets_from_sub_folders(small_sets, tmp_path):
    parent = small_sets["mnist"].parent
    for name in small_sets:
        dataset = load_dataset(name, str(parent), no_call)
        assert dataset.name == name
        assert_equal_sets(dataset, load_dataset(name, small_sets[name], no_call))
        for subfolder in SUBFOLDERS[name]:
            shutil.copytree(small_sets[name], tmp_path / "one" / subfolder)
            assert_equal_sets(load_dataset(name, tmp_path / "one", no_call), dataset)
            shutil.rmtree(tmp_path / "one" / subfolder)


def test_auto_is_mnist_from_a_folder_or_a_download(small_sets):
    expected = load_dataset("mnist", small_sets["mnist"], no_call)
    assert_equal_sets(load_dataset("auto", small_sets["mnist"], no_call), expected)
    calls = []
    assert_equal_sets(
        load_dataset("auto", download=copy_from(small_sets, calls)), expected
    )
    assert calls == ["mnist"]


def test_a_set_missing_from_the_environment_folder_is_downloaded(
    small_sets, monkeypatch
):
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(small_sets["mnist"]))
    calls = []
    dataset = load_dataset("kmnist", download=copy_from(small_sets, calls))
    assert (dataset.name, calls) == ("kmnist", ["kmnist"])
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(small_sets["kmnist"]))
    message = r"not found.*no network.*holds other datasets only \(kmnist\)"
    with pytest.raises(InputError, match=message):
        load_dataset("auto", download=no_network)  # not the digits


def test_a_given_folder_without_the_files_is_an_error(small_sets, tmp_path):
    for name in ("auto", "mnist"):
        for folder in (tmp_path / "cache", tmp_path / "nowhere"):
            with pytest.raises(InputError, match="--data_dir=") as caught:
                load_dataset(name, folder, no_call)
            assert str(folder) in str(caught.value)
            assert FILES[0] in str(caught.value)
        message = "kmnist holds the files of kmnist, not .*; give --dataset=kmnist, or"
        with pytest.raises(InputError, match=message):
            load_dataset(name, small_sets["kmnist"], no_call)


def test_a_missing_environment_folder_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="MNIST_JAX_DATA_DIR=.*is not a folder"):
        load_dataset("auto", download=no_call)


def test_an_incomplete_folder_is_an_error_naming_the_missing_file(
    small_sets, monkeypatch
):
    (small_sets["mnist"] / FILES[3]).unlink()
    with pytest.raises(InputError, match=f"lacks {FILES[3]}, and"):
        load_dataset("auto", small_sets["mnist"], no_call)
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(small_sets["mnist"]))
    with pytest.raises(InputError, match=f"lacks {FILES[3]}, and"):
        load_dataset("auto", download=no_call)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "exchanged"])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_an_error_even_if_it_was_decoded_before(
    small_sets, file, damage
):
    load_dataset("mnist", small_sets["mnist"], no_call)
    path = small_sets["mnist"] / file
    content = path.read_bytes()
    changed = {
        "truncated": content[:-5],
        "flipped": content[:30] + bytes([content[30] ^ 1]) + content[31:],
        "empty": b"",
        "exchanged": (small_sets["kmnist"] / file).read_bytes(),
    }[damage]
    path.write_bytes(changed)
    for name in ("auto", "mnist"):
        with pytest.raises(InputError, match="truncated, damaged or") as caught:
            load_dataset(name, small_sets["mnist"], no_call)
        message = str(caught.value)
        assert str(path) in message
        assert hashlib.sha256(content).hexdigest() in message
        assert hashlib.sha256(changed).hexdigest() in message
        assert ("of kmnist," in message) == (damage == "exchanged")


def test_an_unreadable_file_is_an_error(small_sets):
    path = small_sets["mnist"] / FILES[0]
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read any file")
    with pytest.raises(InputError, match=f"cannot read .*{FILES[0]}"):
        load_dataset("mnist", small_sets["mnist"], no_call)


def test_unknown_names_are_rejected():
    with pytest.raises(InputError, match="--dataset=cifar is unknown.*kmnist"):
        load_dataset("cifar", download=no_call)


# Downloads


def test_a_download_is_kept_and_not_repeated(small_sets):
    calls = []
    first = load_dataset("kmnist", download=copy_from(small_sets, calls))
    assert calls == ["kmnist"]
    assert_equal_sets(load_dataset("kmnist", download=no_call), first)
    assert [path.name for path in cache_dir().glob("download-*")] == []


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_corrupted_download_is_rejected_and_not_kept(small_sets, damage):
    def download(name, folder):
        copy_from(small_sets)(name, folder)
        path = folder / FILES[2]
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1] + b"!")

    with pytest.raises(DownloadError, match=FILES[2]):
        load_dataset("mnist", download=download)
    assert files_below(cache_dir()) == []
    assert load_dataset("auto", download=download).name == "digits"


def test_a_kept_download_that_was_damaged_is_downloaded_again(small_sets):
    first = load_dataset("mnist", download=copy_from(small_sets))
    (cache_dir() / "downloads" / "mnist" / FILES[1]).write_bytes(b"damaged")
    calls = []
    again = load_dataset("mnist", download=copy_from(small_sets, calls))
    assert calls == ["mnist"]
    assert_equal_sets(again, first)
    assert_equal_sets(load_dataset("mnist", download=no_call), first)


def test_a_missing_network_is_an_error_with_instructions():
    for name in ("mnist", "fashion_mnist", "kmnist"):
        with pytest.raises(InputError) as caught:
            load_dataset(name, download=no_network)
        for phrase in (name, "--data_dir", "MNIST_JAX_DATA_DIR", URLS[name], *FILES):
            assert phrase in str(caught.value)


def test_auto_without_mnist_is_the_digits_with_a_note():
    dataset = load_dataset("auto", download=no_network)
    assert dataset.name == "digits"
    assert dataset.note.startswith("NOT MNIST")
    for phrase in ("scikit-learn", "8x8", "1,797", "--data_dir", "MNIST_JAX_DATA_DIR"):
        assert phrase in dataset.note


def test_loading_does_not_import_tfds_or_initialize_a_device(small_sets):
    load_dataset("digits")  # so that the child process finds them in the cache
    script = (
        "import sys\n"
        "from mnist_jax.data.datasets import load_dataset\n"
        "load_dataset('digits')\n"
        "import jax\n"
        "heavy = {'tensorflow_datasets', 'tensorflow', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends\n"
    )
    run_script(script)


# The published sets


def test_checksums_equal_those_in_tfds():
    from tensorflow_datasets.core.download import checksums

    records = checksums.get_all_url_infos()
    for name, digests in SHA256.items():
        for file, digest in zip(FILES, digests, strict=True):
            assert records[URLS[name] + file].checksum == digest


@needs_mnist
def test_mnist_has_its_known_contents():
    dataset = load_dataset("mnist", DATA_DIR, no_call)
    assert dataset.train.images.shape == (60_000, 28, 28)
    assert dataset.test.images.shape == (10_000, 28, 28)
    assert dataset.train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert dataset.test.labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(dataset.train.labels).tolist() == counts
    mean, std = pixel_statistics(dataset.train.images)
    assert (round(mean, 4), round(std, 4)) == (0.1307, 0.3081)


@needs_mnist
def test_loading_mnist_from_the_cache_is_fast():
    load_dataset("mnist", DATA_DIR, no_call)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        load_dataset("mnist", DATA_DIR, no_call)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.9  # 0.09 s on a quiet machine
