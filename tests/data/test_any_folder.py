"""Datasets of any size: from IDX files under all names, and from `.npz` files."""

import dataclasses
import gzip

import numpy as np
import pandas as pd
import pytest
from helpers.small_sets import assert_equal_sets, write_idx_set

from mnist_jax.config import TrainConfig
from mnist_jax.data.datasets import load_any, load_dataset
from mnist_jax.data.splits import split_dataset
from mnist_jax.data.types import Dataset, Split
from mnist_jax.errors import InputError
from mnist_jax.testing import assert_trees_close
from mnist_jax.training.prepare import split_for_training


def make_arrays(height=12, width=20, classes=3, first=0):
    """Returns the arrays of a small set, by their names in an `.npz`."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, size in (("train", 2 * classes), ("test", classes)):
        shape = (size, height, width)
        arrays[f"x_{name}"] = rng.integers(0, 256, shape).astype(np.uint8)
        arrays[f"y_{name}"] = (first + np.arange(size) % classes).astype(np.uint8)
    return arrays


def assert_holds(dataset, arrays):
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        labels = arrays[f"y_{name}"].astype(np.int32)
        assert_trees_close(split, Split(arrays[f"x_{name}"], labels), rtol=0)


def test_every_form_holds_the_same_set(tmp_path, monkeypatch):
    arrays = make_arrays(classes=3)
    checksums = set()
    for separator in ("-idx", ".idx"):
        for compress in (gzip.compress, bytes):
            folder = tmp_path / f"{separator}{compress.__name__}"
            write_idx_set(folder, arrays, separator=separator, compress=compress)
            dataset = load_dataset("idx", folder)
            assert_holds(dataset, arrays)
            assert dataset.shapes == ((12, 20), 3) and dataset.note == ""
            checksums.add(dataset.checksum)
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "set.npz", **arrays)
    for path in (tmp_path / "npz", tmp_path / "npz" / "set.npz"):
        checksums.add(load_dataset("idx", path).checksum)
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(tmp_path / "npz"))
    checksums.add(load_dataset("idx").checksum)
    assert len(checksums) == 1
    arrays["x_train"] = arrays["x_train"] ^ 1
    np.savez(tmp_path / "npz" / "set.npz", **arrays)
    assert load_dataset("idx").checksum not in checksums


def test_emnist_is_transposed_and_its_letters_start_at_0(tmp_path):
    arrays = make_arrays(classes=26, first=1)
    write_idx_set(tmp_path, arrays, prefix="emnist-letters-", test="test")
    dataset = load_any(tmp_path)
    assert dataset.shapes == ((20, 12), 26)
    shown = {k: v.swapaxes(1, 2) if k[0] == "x" else v - 1 for k, v in arrays.items()}
    assert_holds(dataset, shown)
    assert "transposed back" in dataset.note and "1..26 became 0..25" in dataset.note


def test_one_of_several_sets_is_chosen_by_its_prefix(tmp_path):
    for prefix, classes in (("emnist-balanced-", 47), ("emnist-mnist-", 10)):
        arrays = make_arrays(classes=classes)
        write_idx_set(tmp_path, arrays, prefix=prefix, test="test")
    for name in ("a.npz", "b.npz"):
        np.savez(tmp_path / name, **make_arrays())
    with pytest.raises(InputError, match=r"datasets \(a.npz, .* emnist-mnist\)"):
        load_any(tmp_path)
    assert load_any(tmp_path / "emnist-balanced").classes == 47
    assert load_any(tmp_path / "emnist-mnist").classes == 10
    assert_holds(load_any(tmp_path / "a.npz"), make_arrays())


def test_qmnist_has_labels_of_eight_columns(tmp_path):
    arrays = make_arrays(28, 28, 10)
    written = arrays.copy()
    for name in ("y_train", "y_test"):
        written[name] = np.full((len(arrays[name]), 8), 999, np.int32)
        written[name][:, 0] = arrays[name]
    write_idx_set(tmp_path, written, prefix="qmnist-", test="test")
    assert (tmp_path / "qmnist-test-labels-idx2-int.gz").exists()
    dataset = load_any(tmp_path)
    assert_holds(dataset, arrays)
    assert dataset.classes == 10 and "first of their 8 columns" in dataset.note


def replaced(**changed):
    return lambda arrays: {**arrays, **changed}


IMAGES, LABELS = np.zeros((6, 5, 5), np.uint8), np.arange(6) % 2
WRONG = {
    "65 pixels": (lambda a: make_arrays(65, 3), r"sides of 1\.\.64 .*got 65x3"),
    "0 pixels": (lambda a: make_arrays(0, 3), r"not empty; got \[6, 0, 3\] uint8"),
    "1001 classes": (replaced(y_train=np.arange(6) * 200), r"0\.\.999.* 0\.\.1000"),
    "one class": (
        replaced(y_train=LABELS * 0, y_test=np.zeros(3, int)),
        r"2\.\.1000 classes; got 1",
    ),
    "negative": (replaced(y_test=np.array([0, -1, 1])), r"test labels .*got -1\.\.1"),
    "counts": (replaced(y_train=LABELS[:5]), "train split has 6 images but 5 labels"),
    "floats": (replaced(x_train=IMAGES / 255), r"0\.\.255.*got \[6, 5, 5\] float64"),
    "dark": (replaced(x_train=IMAGES.astype(int) - 1), r"0\.\.255.*got -1\.\.-1"),
    "one-hot labels": (replaced(y_train=np.eye(6, dtype=int)), r"\[N\] or .*\[6, 6\]"),
    "objects": (replaced(y_train=LABELS.astype(object)), "of arrays of numbers"),
    "colour": (replaced(x_train=np.zeros((6, 5, 5, 3), np.uint8)), r"3\] uint8"),
    "flat": (replaced(x_train=np.zeros((6, 25), np.uint8)), r"got \[6, 25\]"),
    "two sizes": (replaced(x_test=IMAGES[:3]), "same size.*; got 5x5 and 12x20"),
    "half a validation set": (replaced(x_val=IMAGES), "lacks y_val; give"),
    "names": (replaced(class_names=np.array(["a", "b"])), r"3\.\.1000 classes; got 2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_supported_is_named_in_one_sentence(tmp_path, case):
    change, message = WRONG[case]
    arrays = change(make_arrays())
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(InputError, match=message):
        load_dataset("idx", tmp_path)


def test_folders_without_a_set_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("MNIST_JAX_DATA_DIR", raising=False)
    with pytest.raises(InputError, match="--dataset=idx needs the folder"):
        load_dataset("idx")
    for path in (tmp_path, tmp_path / "missing" / "emnist"):
        with pytest.raises(InputError, match="holds no dataset; give"):
            load_dataset("idx", path)
    write_idx_set(tmp_path, make_arrays())
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match="lacks y_train; give"):
        load_dataset("idx", tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{path} is not a usable IDX file"):
        load_any(tmp_path)
    np.save(tmp_path / "a.npy", IMAGES)  # an array, not an archive
    (tmp_path / "a.npz").write_bytes(b"no archive")
    for name in ("a.npy", "a.npz"):
        with pytest.raises(InputError, match=r"cannot read .* as an \.npz file") as got:
            load_dataset("idx", tmp_path / name)
        assert "pickle" not in str(got.value)


def test_the_arrays_of_medmnist_are_taken(tmp_path, caplog):
    """With a last axis of length 1, and with a validation set of their own."""
    arrays = make_arrays()
    arrays |= {"x_val": arrays["x_test"] ^ 1, "y_val": arrays["y_test"]}
    names = {"x": "images", "y": "labels"}
    np.savez(
        tmp_path / "set.npz",
        ids=np.arange(3),
        class_names=np.array(["cat", "dog", "hen"]),
        **{f"{k[2:]}_{names[k[0]]}": v[..., None] for k, v in arrays.items()},
    )
    dataset = load_any(tmp_path)
    assert_holds(dataset, arrays)
    assert dataset.class_names == ("cat", "dog", "hen") and dataset.note == ""
    assert "the arrays ids of" in caplog.text
    got = split_dataset(dataset, TrainConfig())
    np.testing.assert_array_equal(got.validation.images, arrays["x_val"])
    np.testing.assert_array_equal(got.train.images, arrays["x_train"])
    without = dataclasses.replace(dataset, validation=None)
    assert without.checksum != dataset.checksum  # validation images choose epochs
    write_idx_set(tmp_path / "idx", arrays)
    same = dataclasses.replace(dataset, class_names=())
    assert_equal_sets(load_any(tmp_path / "idx"), same)


def test_a_dataset_of_lists_and_pandas_objects_is_one_of_arrays():
    frame = pd.DataFrame(IMAGES.reshape(6, -1)).assign(label=LABELS)[::-1]
    labels = frame.pop("label")  # whose index does not count from 0
    images = frame.to_numpy().reshape(-1, 5, 5, 1).astype(np.int64)
    expected = Dataset(Split(IMAGES, LABELS[::-1]), Split(IMAGES, LABELS))
    for given in (labels, labels.tolist(), labels.to_frame()):
        dataset = Dataset((images, given), (images.tolist(), LABELS))
        assert_equal_sets(dataset, expected)
        assert dataset.train.images.dtype == np.uint8
        assert dataset.train.labels.dtype == np.int32
        assert dataset.train.labels.tolist() == [1, 0, 1, 0, 1, 0]
    assert expected.classes == 2 and expected.note == ""


def test_classes_lost_in_the_split_are_stated(caplog):
    train = Split(IMAGES, np.arange(6) // 2)  # sorted, and the last are held out
    dataset, config = Dataset(train, train), TrainConfig(batch_size=1)
    split_for_training(dataset, dataclasses.replace(config, validation_fraction=0.1))
    assert caplog.text == ""
    split_for_training(dataset, dataclasses.replace(config, validation_fraction=0.4))
    assert "no training image has the labels [2]" in caplog.text


def test_a_dataset_made_in_python_is_checked():
    split = Split(IMAGES, LABELS)
    for changes, message in (
        ({"class_names": range(1001)}, r"2\.\.1000 classes; got 1001"),
        ({"test": (IMAGES, LABELS + 1), "class_names": "ab"}, r"must have 3\.\."),
    ):
        with pytest.raises(InputError, match=message):
            Dataset(**{"train": split, "test": split, **changes})
