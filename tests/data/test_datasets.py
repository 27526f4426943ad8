"""Data sets: where files are looked for, what is refused, scalings, splits, orders."""

import gzip
import hashlib
import io
import os
import shutil
import stat
import struct
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import logging
from helpers.processes import run_at_once, run_script

from mnist_jax.data import datasets as data
from mnist_jax.data.digits import upsample_digits
from mnist_jax.data.download import FILES, URLS, DownloadError
from mnist_jax.errors import InputError

DATA_DIR = os.environ.get("MNIST_JAX_DATA_DIR")
needs_mnist = pytest.mark.skipif(
    not DATA_DIR, reason="needs MNIST in MNIST_JAX_DATA_DIR"
)


@pytest.fixture(autouse=True)
def _own_folders(tmp_path, monkeypatch):
    """Gives each test a cache folder of its own and no standing data folder."""
    monkeypatch.setenv("MNIST_JAX_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("MNIST_JAX_DATA_DIR", raising=False)


def write_small_set(folder, seed):
    """Writes 50 training and 20 test images as a set of four files."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.RandomState(seed)
    for file in FILES:
        count = 50 if "train" in file else 20
        if "images" in file:
            header = struct.pack(">IIII", 0x803, count, 28, 28)
            items = rng.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        else:
            header = struct.pack(">II", 0x801, count)
            items = rng.randint(0, 10, count).astype(np.uint8)
        (folder / file).write_bytes(gzip.compress(header + items.tobytes(), mtime=0))


@pytest.fixture
def small_sets(tmp_path, monkeypatch):
    """Puts small files in the place of all published ones; returns their folders."""
    folders = {}
    for seed, name in enumerate(data.SHA256):
        folders[name] = tmp_path / "small" / name
        write_small_set(folders[name], seed)
        digests = tuple(
            hashlib.sha256((folders[name] / file).read_bytes()).hexdigest()
            for file in FILES
        )
        monkeypatch.setitem(data.SHA256, name, digests)
    return folders


def no_network(name, folder):
    """Downloads nothing, as without a network."""
    raise DownloadError("no network")


def no_call(name, folder):
    """Fails the test: nothing is to be downloaded in it."""
    raise AssertionError("a download was tried")


def copy_from(folders, calls=None):
    """Returns a downloader that copies the small files."""

    def download(name, folder):
        for file in FILES:
            shutil.copy(folders[name] / file, folder / file)
        if calls is not None:
            calls.append(name)

    return download


def assert_equal_sets(one, other):
    """Compares two data sets, arrays included."""
    assert (one.name, one.checksum, one.note) == (
        other.name,
        other.checksum,
        other.note,
    )
    for left, right in ((one.train, other.train), (one.test, other.test)):
        np.testing.assert_array_equal(left.images, right.images)
        np.testing.assert_array_equal(left.labels, right.labels)


def snapshot(folder):
    """Returns names, contents and times of all files below a folder."""
    return {
        path: (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in [folder, *folder.rglob("*")]
    }


# Where the files come from


def test_files_come_out_decoded_and_nothing_is_written_beside_them(small_sets):
    before = snapshot(small_sets["mnist"])
    dataset = data.load_dataset("mnist", small_sets["mnist"], no_call)
    assert (dataset.name, dataset.validation, dataset.note) == ("mnist", None, "")
    assert dataset.train.images.shape == (50, 28, 28)
    assert dataset.test.images.shape == (20, 28, 28)
    assert dataset.train.images.dtype == np.uint8
    assert dataset.train.labels.dtype == np.int32
    rng = np.random.RandomState(0)  # as write_small_set draws
    np.testing.assert_array_equal(
        dataset.train.images, rng.randint(0, 256, (50, 28, 28))
    )
    np.testing.assert_array_equal(dataset.train.labels, rng.randint(0, 10, 50))
    assert snapshot(small_sets["mnist"]) == before
    checksum = hashlib.sha256("".join(data.SHA256["mnist"]).encode()).hexdigest()
    assert dataset.checksum == checksum


def test_data_dir_wins_over_the_environment_and_that_over_downloads(
    small_sets, tmp_path, monkeypatch
):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(small_sets["mnist"], elsewhere / "mnist")
    hashed = []
    hash_files = data._hash_files
    monkeypatch.setattr(
        data, "_hash_files", lambda place: hashed.append(place) or hash_files(place)
    )
    data.load_dataset("mnist", download=copy_from(small_sets))
    hashed.clear()
    data.load_dataset("mnist", download=no_call)
    assert hashed == [data.cache_dir() / "downloads" / "mnist"]
    hashed.clear()
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(small_sets["mnist"]))
    data.load_dataset("mnist", download=no_call)
    assert hashed == [small_sets["mnist"]]
    hashed.clear()
    data.load_dataset("mnist", elsewhere, no_call)
    assert hashed == [elsewhere / "mnist"]


def test_one_folder_serves_all_sets_from_sub_folders(small_sets):
    parent = small_sets["mnist"].parent
    for name in small_sets:
        dataset = data.load_dataset(name, str(parent), no_call)
        assert dataset.name == name
        assert_equal_sets(dataset, data.load_dataset(name, small_sets[name], no_call))


def test_auto_is_mnist_from_a_folder_or_a_download(small_sets):
    expected = data.load_dataset("mnist", small_sets["mnist"], no_call)
    assert_equal_sets(data.load_dataset("auto", small_sets["mnist"], no_call), expected)
    calls = []
    assert_equal_sets(
        data.load_dataset("auto", download=copy_from(small_sets, calls)), expected
    )
    assert calls == ["mnist"]


def test_the_environment_may_lack_a_set_and_then_it_is_downloaded(
    small_sets, monkeypatch
):
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(small_sets["mnist"]))
    calls = []
    dataset = data.load_dataset("kmnist", download=copy_from(small_sets, calls))
    assert (dataset.name, calls) == ("kmnist", ["kmnist"])


def test_a_given_folder_without_the_files_is_an_error(small_sets, tmp_path):
    for name in ("auto", "mnist"):
        for folder in (tmp_path / "cache", tmp_path / "nowhere", small_sets["kmnist"]):
            with pytest.raises(InputError, match="--data_dir=") as caught:
                data.load_dataset(name, folder, no_call)
            assert str(folder) in str(caught.value)
            assert FILES[0] in str(caught.value)


def test_a_mistyped_environment_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="MNIST_JAX_DATA_DIR=.*is not a folder"):
        data.load_dataset("auto", download=no_call)


def test_an_incomplete_folder_is_an_error_naming_what_is_missing(
    small_sets, monkeypatch
):
    (small_sets["mnist"] / FILES[3]).unlink()
    with pytest.raises(InputError, match=f"lacks {FILES[3]} beside"):
        data.load_dataset("auto", small_sets["mnist"], no_call)
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(small_sets["mnist"]))
    with pytest.raises(InputError, match=f"lacks {FILES[3]} beside"):
        data.load_dataset("auto", download=no_call)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "exchanged"])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_an_error_even_if_it_was_decoded_before(
    small_sets, file, damage
):
    data.load_dataset("mnist", small_sets["mnist"], no_call)
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
        with pytest.raises(InputError, match="truncated or damaged") as caught:
            data.load_dataset(name, small_sets["mnist"], no_call)
        message = str(caught.value)
        assert str(path) in message
        assert hashlib.sha256(content).hexdigest() in message
        assert hashlib.sha256(changed).hexdigest() in message


def test_an_unreadable_file_is_an_error(small_sets):
    path = small_sets["mnist"] / FILES[0]
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(InputError, match="can't be read"):
        data.load_dataset("mnist", small_sets["mnist"], no_call)


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="--dataset=cifar is unknown.*kmnist"):
        data.load_dataset("cifar", download=no_call)


# Downloads


def test_a_download_is_kept_and_not_repeated(small_sets):
    calls = []
    first = data.load_dataset("kmnist", download=copy_from(small_sets, calls))
    assert calls == ["kmnist"]
    assert_equal_sets(data.load_dataset("kmnist", download=no_call), first)
    assert [path.name for path in data.cache_dir().glob("download-*")] == []


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_corrupted_download_is_refused_and_not_kept(small_sets, damage):
    def download(name, folder):
        copy_from(small_sets)(name, folder)
        path = folder / FILES[2]
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[:-1] + b"!")

    with pytest.raises(DownloadError, match=FILES[2]):
        data.load_dataset("mnist", download=download)
    assert [path for path in data.cache_dir().rglob("*") if path.is_file()] == []
    assert data.load_dataset("auto", download=download).name == "digits"


def test_a_kept_download_that_was_damaged_is_downloaded_again(small_sets):
    first = data.load_dataset("mnist", download=copy_from(small_sets))
    (data.cache_dir() / "downloads" / "mnist" / FILES[1]).write_bytes(b"damaged")
    calls = []
    again = data.load_dataset("mnist", download=copy_from(small_sets, calls))
    assert calls == ["mnist"]
    assert_equal_sets(again, first)
    assert_equal_sets(data.load_dataset("mnist", download=no_call), first)


def test_no_network_is_an_error_that_says_what_to_do():
    for name in ("mnist", "fashion_mnist", "kmnist"):
        with pytest.raises(InputError) as caught:
            data.load_dataset(name, download=no_network)
        for phrase in (name, "--data_dir", "MNIST_JAX_DATA_DIR", URLS[name], *FILES):
            assert phrase in str(caught.value)


def test_auto_without_mnist_is_the_loudly_named_digits():
    dataset = data.load_dataset("auto", download=no_network)
    assert dataset.name == "digits"
    assert dataset.note.startswith("NOT MNIST")
    for phrase in ("scikit-learn", "8x8", "1,797", "--data_dir", "MNIST_JAX_DATA_DIR"):
        assert phrase in dataset.note


# The cache


def test_cache_dir_follows_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/someone")
    assert data.cache_dir() == Path(os.environ["MNIST_JAX_CACHE_DIR"])
    monkeypatch.setenv("MNIST_JAX_CACHE_DIR", "")
    assert data.cache_dir() == Path("/xdg/mnist_jax")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data.cache_dir() == Path("/home/someone/.cache/mnist_jax")


def test_a_second_start_decodes_nothing(small_sets, monkeypatch):
    first = data.load_dataset("mnist", small_sets["mnist"], no_call)
    monkeypatch.setattr(data.idx, "read_images", no_call)
    monkeypatch.setattr(data.idx, "read_labels", no_call)
    assert_equal_sets(data.load_dataset("mnist", small_sets["mnist"], no_call), first)


def entry_with_digest(array):
    """Returns a whole cache entry of an array that does not belong there."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return with_digest(buffer.getvalue())


def with_digest(npy):
    """Returns a file's bytes with their sha256 behind them, as an entry has it."""
    return npy + hashlib.sha256(npy).digest()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[:1000],
        lambda content: content[:500] + bytes([content[500] ^ 8]) + content[501:],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
        lambda content: content + b"x",
        lambda content: entry_with_digest(np.zeros((50, 28, 27), np.uint8)),
        lambda content: entry_with_digest(np.zeros((50, 28, 28), np.int32)),
        lambda content: entry_with_digest(np.zeros((), np.uint8)),
        lambda content: entry_with_digest(np.array([{}], object)),
        lambda content: with_digest(content[:-32].replace(b"(50,", b"(99999999,", 1)),
        lambda content: with_digest(content[:-32].replace(b"(50,", b"(51,", 1)),
        lambda content: b"junk" + hashlib.sha256(b"junk").digest(),
    ],
)
def test_a_damaged_cache_entry_is_rebuilt(small_sets, caplog, damage):
    first = data.load_dataset("mnist", small_sets["mnist"], no_call)
    entry = data.cache_dir() / "arrays" / f"{data.SHA256['mnist'][0]}.npy"
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))
    assert_equal_sets(data.load_dataset("mnist", small_sets["mnist"], no_call), first)
    assert entry.read_bytes() == whole
    [message] = caplog.messages
    assert str(entry) in message and "is damaged" in message
    np.testing.assert_array_equal(np.load(entry), first.train.images)


@pytest.mark.parametrize("obstacle", ["file", "read-only folder"])
def test_a_cache_that_cannot_be_written_costs_one_warning(
    small_sets, monkeypatch, tmp_path, obstacle
):
    if obstacle == "file":
        (tmp_path / "cache").write_text("in the way")
    else:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache").chmod(stat.S_IRUSR | stat.S_IXUSR)
        if os.access(tmp_path / "cache", os.W_OK):
            pytest.skip("this user may write everywhere")
    warnings = []
    monkeypatch.setattr(
        logging, "log_first_n", lambda level, text, n, *args: warnings.append(n)
    )
    dataset = data.load_dataset("mnist", download=copy_from(small_sets))
    assert_equal_sets(dataset, data.load_dataset("mnist", small_sets["mnist"], no_call))
    assert data.load_dataset("digits").name == "digits"
    assert set(warnings) == {1}


def test_an_interrupted_write_leaves_nothing_behind(small_sets, monkeypatch):
    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.load_dataset("mnist", small_sets["mnist"], no_call)
    assert list((data.cache_dir() / "arrays").iterdir()) == []


# Loads the small set as if it were new.
LOAD = """
import shutil, sys, time
from pathlib import Path
from mnist_jax.data import datasets as data

source, calls = map(Path, sys.argv[1:3])
data.SHA256["mnist"] = tuple(sys.argv[3:])

def download(name, folder):
    with open(calls, "a") as file:
        file.write("x")
    for file in data.FILES:
        shutil.copy(source / file, folder / file)
        time.sleep(0.05)

def work(process):
    dataset = data.load_dataset("mnist", download=download)
    assert int(dataset.train.images.sum()) > 0
    assert data.load_dataset("digits").train.images.shape == (1437, 28, 28)
"""


def test_eight_processes_fill_a_new_cache_and_one_of_them_downloads(
    small_sets, tmp_path
):
    calls = tmp_path / "calls"
    run_at_once(LOAD, small_sets["mnist"], calls, *data.SHA256["mnist"])
    assert calls.read_text() == "x"
    files = [path for path in data.cache_dir().rglob("*") if path.is_file()]
    # Four downloads, four arrays and scikit-learn's digits; nothing half-written.
    assert len(files) == 9
    expected = data.load_dataset("mnist", small_sets["mnist"], no_call)
    assert_equal_sets(data.load_dataset("mnist", download=no_call), expected)


def test_neither_import_nor_load_import_tfds_or_start_a_device(small_sets):
    data.load_dataset("digits")  # so that the child finds it in the cache
    script = (
        "import sys\n"
        "from mnist_jax import data\n"
        "data.load_dataset('digits')\n"
        "import jax\n"
        "heavy = {'tensorflow_datasets', 'tensorflow', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends\n"
    )
    run_script(script)


# The published sets


def test_checksums_are_those_that_tfds_records():
    from tensorflow_datasets.core.download import checksums

    records = checksums.get_all_url_infos()
    for name, digests in data.SHA256.items():
        for file, digest in zip(FILES, digests, strict=True):
            assert records[URLS[name] + file].checksum == digest


@needs_mnist
def test_mnist_is_what_everybody_knows():
    dataset = data.load_dataset("mnist", DATA_DIR, no_call)
    assert dataset.train.images.shape == (60_000, 28, 28)
    assert dataset.test.images.shape == (10_000, 28, 28)
    assert dataset.train.labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert dataset.test.labels[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(dataset.train.labels).tolist() == counts
    mean, std = data.pixel_statistics(dataset.train.images)
    assert (round(mean, 4), round(std, 4)) == (0.1307, 0.3081)


@needs_mnist
def test_a_warm_start_with_mnist_is_quick():
    data.load_dataset("mnist", DATA_DIR, no_call)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        data.load_dataset("mnist", DATA_DIR, no_call)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.9  # 0.09 s on a quiet machine


def test_digits_look_like_mnist_and_are_split_by_class():
    dataset = data.load_dataset("digits", download=no_call)
    assert (dataset.name, dataset.note) == ("digits", "")
    for split, size in ((dataset.train, 1437), (dataset.test, 360)):
        assert split.images.shape == (size, 28, 28)
        assert split.images.dtype == np.uint8
        assert split.labels.shape == (size,)
        assert split.labels.dtype == np.int32
        assert split.images.max() == 255
        margin = split.images.copy()
        margin[:, 4:24, 4:24] = 0
        assert not margin.any()
        share = np.bincount(split.labels) / size
        np.testing.assert_allclose(share, 0.1, atol=0.005)
    # The bytes and the split are the same everywhere.
    assert dataset.checksum == (
        "63233e9347e4ea2ea272cf4f8c284518a64027653c872af7952374c968ea312d"
    )
    both = np.concatenate([dataset.train.images, dataset.test.images])
    assert len(np.unique(both.reshape(1797, -1), axis=0)) == 1797
    assert_equal_sets(dataset, data.load_dataset("digits", download=no_call))


def test_digits_are_upsampled_bilinearly():
    from scipy import ndimage

    digits = np.random.RandomState(0).randint(0, 17, (5, 8, 8)).astype(np.uint8)
    expected = [
        ndimage.zoom(digit * (255 / 16), 2.5, order=1, grid_mode=True, mode="nearest")
        for digit in digits
    ]
    got = upsample_digits(digits)[:, 4:24, 4:24]
    np.testing.assert_allclose(got, expected, atol=0.5 + 1e-6)


# Splits


@pytest.fixture
def small():
    """A data set of 60 training and 10 test images, each image its own number."""
    images = np.repeat(np.arange(70, dtype=np.uint8), 784).reshape(70, 28, 28)
    labels = np.arange(70, dtype=np.int32) % 10
    return data.Dataset(
        name="mnist",
        train=data.Split(images[:60], labels[:60]),
        validation=None,
        test=data.Split(images[60:], labels[60:]),
        checksum="c",
        note="n",
    )


def numbers(split):
    """Returns the numbers of a split's images, which its labels must agree with."""
    found = split.images[:, 0, 0].astype(int)
    np.testing.assert_array_equal(found % 10, split.labels)
    return found.tolist()


def test_the_default_split_is_the_official_one(small):
    got = data.split_dataset(small)
    assert numbers(got.train) == list(range(60))
    assert numbers(got.test) == list(range(60, 70))
    assert got.validation is None
    assert (got.name, got.checksum, got.note) == ("mnist", "c", "n")


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_the_shuffled_split_is_that_of_scikit_learn(small, seed):
    from sklearn.model_selection import train_test_split

    train, test = train_test_split(
        np.arange(70), test_size=1 / 7, random_state=np.random.RandomState(seed)
    )
    got = data.split_dataset(small, split="shuffled", split_seed=seed)
    assert numbers(got.train) == train.tolist()
    assert numbers(got.test) == test.tolist()


def test_the_validation_fraction_is_the_end_of_the_training_set(small):
    got = data.split_dataset(small, validation="fraction", validation_fraction=0.2)
    assert numbers(got.train) == list(range(48))
    assert numbers(got.validation) == list(range(48, 60))
    assert numbers(got.test) == list(range(60, 70))


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.3, 0.35, 0.58, 0.9, 0.98])
def test_the_validation_fraction_rounds_as_in_keras(small, fraction):
    got = data.split_dataset(small, validation="fraction", validation_fraction=fraction)
    assert len(got.train.labels) == int(60 * (1 - fraction))
    assert len(got.train.labels) + len(got.validation.labels) == 60


def test_the_test_set_may_serve_as_validation_set(small):
    got = data.split_dataset(small, validation="test")
    assert numbers(got.validation) == numbers(got.test) == list(range(60, 70))


def test_train_size_takes_the_first_before_validation_is_cut_off(small):
    got = data.split_dataset(small, validation="fraction", train_size=20)
    assert numbers(got.train) == list(range(16))
    assert numbers(got.validation) == list(range(16, 20))
    shuffled = data.split_dataset(small, split="shuffled", train_size=20)
    whole = data.split_dataset(small, split="shuffled")
    assert numbers(shuffled.train) == numbers(whole.train)[:20]
    assert numbers(shuffled.test) == numbers(whole.test)


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        ({"split": "random"}, "--split=random is unknown"),
        ({"validation": "some"}, "--validation=some is unknown"),
        ({"split": "shuffled", "split_seed": -1}, "--split_seed=-1"),
        ({"split": "shuffled", "split_seed": 2**32}, "--split_seed=4294967296"),
        ({"train_size": 0}, "--train_size=0 is out of range: 1..60"),
        ({"train_size": 61}, "--train_size=61 is out of range: 1..60"),
        *(
            ({"validation": "fraction", "validation_fraction": value}, f"={value} of")
            for value in (0.0, 1.0, -0.5, 1.5, float("nan"), 0.999)
        ),
        ({"validation": "fraction", "train_size": 1}, "of 1 training images"),
    ],
)
def test_impossible_splits_are_refused(small, arguments, phrase):
    with pytest.raises(InputError) as caught:
        data.split_dataset(small, **arguments)
    assert phrase in str(caught.value)


def test_a_split_is_not_split_again(small):
    once = data.split_dataset(small, validation="fraction")
    with pytest.raises(InputError, match="was given with a validation set of 12"):
        data.split_dataset(once)


# Pixels

PICTURES = np.random.RandomState(0).randint(0, 256, (3, 28, 28)).astype(np.uint8)
PICTURES[0, :, 5] = 0  # a column without a norm
PICTURES[1] = 0


def plain_scaling(images, pixels):
    """The definitions, one image and column at a time, in float64."""
    if pixels == "l2":
        out = np.zeros(images.shape)
        for n, image in enumerate(images):
            for column in range(28):
                values = image[:, column].astype(np.float64)
                out[n, :, column] = values / (np.sqrt((values**2).sum()) or 1.0)
        return out
    values = images.astype(np.float64)
    return {
        "raw": values,
        "scaled": values / 255,
        "standardized": (values / 255 - 0.13) / 0.31,
    }[pixels]


@pytest.mark.parametrize("pixels", data.PIXELS)
def test_scalings_equal_plain_numpy(pixels):
    expected = plain_scaling(PICTURES, pixels)

    def scale(images):
        return data.scale_pixels(images, pixels, mean=0.13, std=0.31)

    for got in (scale(PICTURES), jax.jit(scale)(PICTURES)):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(scale(PICTURES[2]), expected[2], rtol=1e-6, atol=1e-6)
    stacked = scale(PICTURES[:, None])
    np.testing.assert_allclose(stacked[:, 0], expected, rtol=1e-6, atol=1e-6)


def test_l2_columns_have_norm_one_or_zero():
    norms = np.linalg.norm(data.scale_pixels(PICTURES, "l2"), axis=1)
    blank = ~PICTURES.any(axis=1)
    assert blank.any() and not blank.all()
    np.testing.assert_allclose(norms, np.where(blank, 0.0, 1.0), atol=1e-6)


def test_an_unknown_scaling_is_refused():
    with pytest.raises(InputError, match="--pixels=grey is unknown.*standardized"):
        data.scale_pixels(PICTURES, "grey")


def test_pixel_statistics_equal_plain_numpy():
    images = np.random.RandomState(1).randint(0, 256, (3000, 28, 28)).astype(np.uint8)
    for some in (images, images[:1], images[::7]):
        mean, std = data.pixel_statistics(some)
        assert isinstance(mean, float) and isinstance(std, float)
        assert mean == pytest.approx((some / 255).mean(), rel=1e-12)
        assert std == pytest.approx((some / 255).std(), rel=1e-12)
    assert data.pixel_statistics(np.full((2, 28, 28), 51, np.uint8)) == (0.2, 1.0)


# Epoch orders


@pytest.mark.parametrize(
    ("size", "batch_size"), [(1, 1), (10, 3), (12, 3), (5, 8), (1000, 128)]
)
def test_an_epoch_has_every_index_once_and_pads_the_end(size, batch_size):
    indices = data.epoch_indices(0, 0, size, batch_size)
    assert indices.dtype == np.int32
    assert indices.shape == (-(-size // batch_size), batch_size)
    flat = indices.reshape(-1)
    assert sorted(flat[:size].tolist()) == list(range(size))
    assert (flat[size:] == -1).all()


def test_epochs_differ_and_each_can_be_had_alone():
    orders = {
        (seed, epoch): data.epoch_indices(seed, epoch, 200, 50).tobytes()
        for seed in (0, 1, 2**64 - 1)
        for epoch in (0, 1, 2)
    }
    assert len(set(orders.values())) == 9
    assert data.epoch_indices(1, 2, 200, 50).tobytes() == orders[1, 2]
    # Frozen, so that a record's seed still means the same after an update of NumPy.
    assert data.epoch_indices(0, 1, 8, 4).tolist() == [
        [5, 3, 7, 2],
        [4, 1, 0, 6],
    ]


def test_the_order_of_an_epoch_is_uniform():
    firsts = [data.epoch_indices(0, epoch, 10, 10)[0, 0] for epoch in range(2000)]
    counts = np.bincount(firsts, minlength=10)
    # Chi-squared with 9 degrees of freedom exceeds 27.9 once in a thousand.
    assert ((counts - 200) ** 2 / 200).sum() < 27.9


@pytest.mark.parametrize(
    "arguments", [(-1, 0, 10, 2), (0, -1, 10, 2), (0, 0, 0, 2), (0, 0, 10, 0)]
)
def test_impossible_epochs_are_refused(arguments):
    with pytest.raises(InputError, match="is out of range"):
        data.epoch_indices(*arguments)
