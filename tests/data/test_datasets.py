"""Published sets: the search for files in all their forms, downloads, and errors."""

import gzip
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import run_python
from helpers.small_sets import assert_equal_sets, copy_from, files_below

from mnist_jax.data import datasets
from mnist_jax.data.cache import cache_dir
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.download import DownloadError
from mnist_jax.data.published import FILES, SETS
from mnist_jax.data.reader import content_sha256, read_idx
from mnist_jax.data.types import Split
from mnist_jax.errors import InputError
from mnist_jax.testing import assert_trees_close

DATA_DIR = os.environ.get("MNIST_JAX_DATA_DIR")
pytestmark = pytest.mark.usefixtures("isolated_folders")


def no_network(name: str, folder: Path) -> None:
    """Fails as a download without a network does."""
    raise DownloadError("no network")


# Where the files come from


def test_files_are_decoded_and_nothing_is_written_next_to_them(small_sets):
    folder = small_sets["mnist"]
    before = {file: file.stat().st_mtime_ns for file in [folder, *folder.rglob("*")]}
    dataset = load_dataset("mnist", folder)
    assert (dataset.name, dataset.validation, dataset.note) == ("mnist", None, "")
    rng = np.random.RandomState(0)  # as in small_sets
    images = rng.randint(0, 256, (50, 28, 28)).astype(np.uint8)
    labels = rng.randint(0, 10, 50).astype(np.int32)
    assert_trees_close(dataset.train, Split(images, labels), rtol=0)
    assert dataset.test.images.shape == (20, 28, 28)
    after = {file: file.stat().st_mtime_ns for file in [folder, *folder.rglob("*")]}
    assert after == before
    checksum = hashlib.sha256("".join(SETS["mnist"].sha256).encode()).hexdigest()
    assert dataset.checksum == checksum


def test_data_dir_precedes_the_environment_which_precedes_downloads(
    small_sets, tmp_path, monkeypatch
):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(small_sets["mnist"], elsewhere / "mnist")
    calls = []
    monkeypatch.setattr(datasets, "download_files", copy_from(small_sets, calls))
    assert load_dataset("mnist").data_dir is load_dataset("mnist").data_dir is None
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(small_sets["mnist"]))
    assert load_dataset("mnist").data_dir == str(small_sets["mnist"])
    assert load_dataset("mnist", elsewhere).data_dir == str(elsewhere)
    assert calls == ["mnist"]


def gzipped_again(content):
    """Returns the content of a file as some mirrors compress it."""
    return gzip.compress(gzip.decompress(content), 1)


def gunzipped(file, content):
    """Returns a file without its compression."""
    return file.removesuffix(".gz"), gzip.decompress(content)


def dotted(file, content):
    """Returns a file under the name that it has in some downloads."""
    return file.replace("-idx", ".idx"), content


FORMS = {
    "gzipped again": ("", lambda file, content: (file, gzipped_again(content))),
    "dotted": ("", dotted),
    "dotted and gunzipped": ("", lambda *file: gunzipped(*dotted(*file))),
    "images only": ("", lambda *f: gunzipped(*f) if "images" in f[0] else f),
    **{folder: (folder, gunzipped) for folder in SETS["mnist"].folders},
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_the_files_are_the_same_set(
    small_sets, tmp_path, monkeypatch, form
):
    subfolder, change = FORMS[form]
    folder = tmp_path / "forms" / subfolder
    folder.mkdir(parents=True)
    for file in FILES.values():
        name, content = change(file, (small_sets["mnist"] / file).read_bytes())
        (folder / name).write_bytes(content)
    expected = load_dataset("mnist", small_sets["mnist"])
    assert_equal_sets(load_dataset("mnist", tmp_path / "forms"), expected)
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(tmp_path / "forms"))
    assert_equal_sets(load_dataset("auto"), expected)


def test_one_folder_serves_all_sets_from_sub_folders(small_sets):
    for name, folder in small_sets.items():
        dataset = load_dataset(name, folder.parent)
        assert dataset.name == name
        assert_equal_sets(dataset, load_dataset(name, folder))


def test_keras_archive_is_the_same_set(small_sets, tmp_path):
    folder = small_sets["mnist"]
    arrays = {name: read_idx(folder / file) for name, file in FILES.items()}
    expected = load_dataset("mnist", folder)
    for save in (np.savez, np.savez_compressed):
        wide = {**arrays, "y_train": arrays["y_train"].astype(np.int64)}
        save(tmp_path / "mnist.npz", **wide)
        assert_equal_sets(load_dataset("auto", tmp_path), expected)
    with pytest.raises(InputError, match="holds no files of fashion_mnist"):
        load_dataset("fashion_mnist", tmp_path)
    for changes, message in (
        ({"y_test": np.zeros(20, np.int64)}, "another set is y_test; replace"),
        ({"x_test": np.array([{}])}, "cannot read .* of arrays of numbers"),
    ):
        np.savez(tmp_path / "mnist.npz", **{**arrays, **changes})
        with pytest.raises(InputError, match=message):
            load_dataset("mnist", tmp_path)


def test_a_set_missing_from_the_environment_folder_is_downloaded(
    small_sets, monkeypatch
):
    monkeypatch.setenv("MNIST_JAX_DATA_DIR", str(small_sets["fashion_mnist"]))
    monkeypatch.setattr(datasets, "download_files", no_network)
    with pytest.raises(DownloadError, match="not found.*no network"):
        load_dataset("auto")  # not the digits
    calls = []
    monkeypatch.setattr(datasets, "download_files", copy_from(small_sets, calls))
    dataset = load_dataset("auto")
    assert (dataset.name, calls) == ("mnist", ["mnist"])


@pytest.mark.parametrize("name", ["auto", "mnist"])
def test_a_given_folder_without_the_files_is_an_error(small_sets, tmp_path, name):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "nowhere", small_sets["kmnist"]):
        with pytest.raises(InputError, match=f"{folder} holds no files of") as caught:
            load_dataset(name, folder)
        for form in (*FILES.values(), "without .gz", "train-images.idx3-ubyte", "/raw"):
            assert form in str(caught.value)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "exchanged"])
@pytest.mark.parametrize("array", ["x_train", "y_test"])
def test_a_damaged_file_is_an_error_even_if_it_was_decoded_before(
    small_sets, array, damage
):
    load_dataset("mnist", small_sets["mnist"])
    path = small_sets["mnist"] / FILES[array]
    content = path.read_bytes()
    items = bytearray(gzip.decompress(content))
    items[-1] ^= 1
    path.write_bytes(
        {
            "truncated": content[:-5],
            "flipped": gzip.compress(items),  # intact, but not the published content
            "missing": b"",
            "exchanged": (small_sets["fashion_mnist"] / FILES[array]).read_bytes(),
        }[damage]
    )
    named = path
    if damage == "missing":
        path.unlink()
        named = array
    message = f"{path} is not a" if damage == "truncated" else f"{named}; replace it"
    with pytest.raises(InputError, match=message):
        load_dataset("auto", small_sets["mnist"])


def test_files_of_kmnist_must_be_the_published_ones(small_sets):
    # The checksums of its decompressed content are unknown.
    for file in FILES.values():
        path = small_sets["kmnist"] / file
        path.write_bytes(gzipped_again(path.read_bytes()))
    with pytest.raises(InputError, match="holds no files of kmnist"):
        load_dataset("kmnist", small_sets["kmnist"])


# Downloads


def test_a_download_is_kept_and_not_repeated(small_sets, monkeypatch):
    calls = []
    monkeypatch.setattr(datasets, "download_files", copy_from(small_sets, calls))
    first = load_dataset("kmnist")
    for times in (1, 2):
        assert_equal_sets(load_dataset("kmnist"), first)
        assert calls == ["kmnist"] * times
        [entry] = files_below(cache_dir())
        entry.write_bytes(entry.read_bytes()[:-1000])


def test_a_corrupted_download_is_rejected_and_not_kept(small_sets, monkeypatch):
    def download(name, folder):
        copy_from(small_sets)(name, folder)
        path = folder / FILES["x_test"]
        path.write_bytes(path.read_bytes()[:-1] + b"!")

    monkeypatch.setattr(datasets, "download_files", download)
    with pytest.raises(DownloadError, match="have another sha256"):
        load_dataset("mnist")
    assert files_below(cache_dir()) == []
    assert load_dataset("auto").name == "digits"


def test_without_a_network_a_set_is_an_error_and_auto_the_digits(monkeypatch):
    monkeypatch.setattr(datasets, "download_files", no_network)
    for name, published in SETS.items():
        with pytest.raises(InputError) as caught:
            load_dataset(name)
        for phrase in (name, "--data_dir", "MNIST_JAX_DATA_DIR", published.url):
            assert phrase in str(caught.value)
    dataset = load_dataset("auto")
    assert dataset.name == "digits"
    assert dataset.note.startswith("NOT MNIST: these are scikit-learn's 1,797")


def test_an_unknown_name_is_an_error_that_lists_the_sets():
    known = "auto, mnist, fashion_mnist, kmnist, digits, idx; got cifar"
    with pytest.raises(InputError, match=f"--dataset must be one of {known}"):
        load_dataset("cifar")


def test_loading_does_not_import_tfds_or_initialize_a_device():
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
    run_python("-c", script)


# The published sets


def test_urls_and_checksums_equal_those_in_tfds():
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.image_classification import mnist

    builders = mnist.MNIST, mnist.FashionMNIST, mnist.KMNIST
    records = checksums.get_all_url_infos()
    for published, builder in zip(SETS.values(), builders, strict=True):
        assert published.url == builder.URL
        for file, digest in zip(FILES.values(), published.sha256, strict=True):
            assert records[published.url + file].checksum == digest


@pytest.mark.skipif(not DATA_DIR, reason="needs MNIST in MNIST_JAX_DATA_DIR")
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_checksums_are_those_of_the_decompressed_content(name):
    folder = Path(DATA_DIR)
    if name != "mnist":
        folder = folder.parent / name.replace("_", "-")
    if not folder.is_dir():
        pytest.skip(f"no files of {name} beside those of MNIST")
    digests = [content_sha256(read_idx(folder / file)) for file in FILES.values()]
    assert tuple(digests) == SETS[name].content_sha256
