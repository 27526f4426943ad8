"""The forms in which a folder may hold a dataset: all are read, others are named."""

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.small_sets import assert_equal_sets, no_call

from mnist_jax.data import idx
from mnist_jax.data.checksums import CONTENT_SHA256
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.download import FILES
from mnist_jax.errors import InputError

DATA_DIR = os.environ.get("MNIST_JAX_DATA_DIR")
pytestmark = pytest.mark.usefixtures("isolated_folders")


def gzipped_again(file, content):
    """Returns a file as some mirrors compress it."""
    return file, gzip.compress(gzip.decompress(content), 1)


def gunzipped(file, content):
    """Returns a file without its compression."""
    return file.removesuffix(".gz"), gzip.decompress(content)


def dotted(file, content):
    """Returns a file under the name that it has in some downloads."""
    return file.replace("-idx", ".idx"), content


FORMS = {
    "gzipped again": ("", gzipped_again),
    "gunzipped": ("mnist", gunzipped),
    "dotted": ("", dotted),
    "dotted and gunzipped": ("", lambda *file: gunzipped(*dotted(*file))),
    "images only": ("", lambda *f: gunzipped(*f) if "images" in f[0] else f),
    "torchvision": ("MNIST/raw", gunzipped),
    "torchvision, one folder further": ("raw", gunzipped),
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_the_files_are_the_same_set(
    small_sets, tmp_path, monkeypatch, form
):
    subfolder, change = FORMS[form]
    folder = tmp_path / "forms" / subfolder
    folder.mkdir(parents=True)
    for file in FILES:
        name, content = change(file, (small_sets["mnist"] / file).read_bytes())
        (folder / name).write_bytes(content)
    decoded = load_dataset("mnist", tmp_path / "forms", no_call)
    expected = load_dataset("mnist", small_sets["mnist"], no_call)
    assert_equal_sets(decoded, expected)
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(tmp_path / "forms"))
    assert_equal_sets(load_dataset("auto", download=no_call), expected)
    file = next(folder.iterdir())
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match="truncated, damaged or not from mnist"):
        load_dataset("auto", download=no_call)


def write_archive(path, folder, save=np.savez_compressed, **changes):
    """Writes the files of a folder as Keras's archive, with some arrays replaced."""
    arrays = {
        name: idx.read_idx(folder / file)
        for name, file in zip(KERAS_NAMES, FILES, strict=True)
    }
    save(path, **{k: v for k, v in (arrays | changes).items() if v is not None})


KERAS_NAMES = ("x_train", "y_train", "x_test", "y_test")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_keras_archive_is_the_same_set(small_sets, tmp_path, save):
    write_archive(tmp_path / "mnist.npz", small_sets["mnist"], save)
    decoded = load_dataset("auto", tmp_path, no_call)
    assert_equal_sets(load_dataset("mnist", tmp_path, no_call), decoded)
    labels = idx.read_idx(small_sets["mnist"] / FILES[1]).astype(np.int64)
    write_archive(tmp_path / "mnist.npz", small_sets["mnist"], save, y_train=labels)
    assert_equal_sets(load_dataset("mnist", tmp_path, no_call), decoded)
    assert_equal_sets(load_dataset("mnist", small_sets["mnist"], no_call), decoded)
    with pytest.raises(InputError, match="holds the files of mnist, not those of kmni"):
        load_dataset("kmnist", tmp_path, no_call)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(x_test=None), "mnist.npz lacks x_test.npy"),
        (dict(y_test=np.zeros(20, np.int64)), "y_test.npy is truncated, damaged or"),
        (dict(x_test=np.zeros((20, 28, 28), np.uint8)), "x_test.npy is truncated,"),
        (dict(y_test=np.arange(20) * 99), "y_test.npy holds 0..1881; give integers"),
        (dict(x_test=np.ones((20, 28, 28))), "x_test.npy is an array of float64, sh"),
        (dict(x_test=np.array([{}])), "x_test.npy is an array of object, shape"),
    ],
)
def test_a_wrong_keras_archive_is_an_error(small_sets, tmp_path, changes, message):
    path = tmp_path / "mnist.npz"
    write_archive(path, small_sets["mnist"], **changes)
    with pytest.raises(InputError, match=message):
        load_dataset("mnist", tmp_path, no_call)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_keras_archive_is_an_error(small_sets, tmp_path, damage):
    path = tmp_path / "mnist.npz"
    write_archive(path, small_sets["mnist"])
    content = path.read_bytes()
    flipped = content[:500] + bytes([content[500] ^ 1]) + content[501:]
    path.write_bytes(content[:-50] if damage == "truncated" else flipped)
    with pytest.raises(InputError, match="cannot read .*mnist.npz"):
        load_dataset("mnist", tmp_path, no_call)


def test_an_environment_folder_without_datasets_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "mnist_train.csv").write_text("5,0,0\n")
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(tmp_path))
    for name in ("auto", "fashion_mnist"):
        with pytest.raises(InputError, match="MNIST_JAX_DATA_DIR=.*csv") as caught:
            load_dataset(name, download=no_call)
        for form in (*FILES, "without .gz", "train-images.idx3-ubyte", "/raw"):
            assert form in str(caught.value)


def test_files_of_kmnist_must_be_the_published_ones(small_sets):
    # The checksums of its decompressed content are unknown.
    for file in FILES:
        path = small_sets["kmnist"] / file
        path.write_bytes(gzipped_again(file, path.read_bytes())[1])
    with pytest.raises(InputError, match="not from kmnist.*published train-images"):
        load_dataset("kmnist", small_sets["kmnist"], no_call)


@pytest.mark.skipif(not DATA_DIR, reason="needs MNIST in MNIST_JAX_DATA_DIR")
@pytest.mark.parametrize("name", CONTENT_SHA256)
def test_checksums_are_those_of_the_decompressed_content(name):
    folder = Path(DATA_DIR)
    if name != "mnist":
        folder = folder.parent / name.replace("_", "-")
    if not folder.is_dir():
        pytest.skip(f"no files of {name} beside those of MNIST")
    digests = [idx.content_sha256(folder / file) for file in FILES]
    assert tuple(digests) == CONTENT_SHA256[name]
