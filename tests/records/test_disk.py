"""Full disks and deleted folders: a clear error, and no existing file is lost."""

import contextlib
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.runs import train_into
from matplotlib.figure import Figure

from mnist_jax.config import TrainConfig
from mnist_jax.data import array_cache as cache
from mnist_jax.data.types import Dataset
from mnist_jax.records.files import read_lines, write_file
from mnist_jax.records.schema import EpochRecord, append_jsonl, read_jsonl, write_json
from mnist_jax.reporting.plots import save_figure
from mnist_jax.training.checkpoints import save_params
from mnist_jax.training.fit import Epoch
from mnist_jax.training.prepare import prepare
from mnist_jax.training.runs import fit_into

ROOT = Path(__file__).parents[2]
ROOM = 5_000  # maximum size of a file in bytes


@contextlib.contextmanager
def little_room() -> Iterator[None]:
    """Limits the size of files to `ROOM`.

    A write that begins below the limit is partial, as on a disk that fills up.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def drawing() -> Figure:
    """Returns a figure of more than `ROOM` bytes."""
    figure = Figure()
    figure.add_subplot()
    return figure


WRITERS = {
    "text": lambda path: write_file(path, "x" * 2 * ROOM),
    "json": lambda path: write_json(path, ["x"] * ROOM),
    "parameters": lambda path: save_params(path, {"w": np.zeros(ROOM)}),
    "line": lambda path: append_jsonl(path, {"pad": "x" * 2 * ROOM}),
    "picture": lambda path: save_figure(drawing(), path),
}


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_the_existing_file(tmp_path, writer, existed):
    path = tmp_path / "file.svg"
    path.write_text("earlier\n" if existed else "")
    before = contents(tmp_path)
    with little_room(), pytest.raises(OSError, match=f"File too large: .{path}"):
        WRITERS[writer](path)
    assert contents(tmp_path) == before


def test_a_cache_on_a_full_disk_warns_and_keeps_its_entries(tmp_path, monkeypatch):
    monkeypatch.setenv("MNIST_JAX_CACHE_DIR", str(tmp_path))
    small = np.arange(100, dtype=np.uint8)
    cache.write_entry("key", {"x": small})
    before = contents(tmp_path / "arrays")
    with little_room():
        cache.write_entry("key", {"x": np.zeros(2 * ROOM, np.uint8)})
    assert contents(tmp_path / "arrays") == before
    np.testing.assert_array_equal(cache.read_entry("key")["x"], small)


def test_a_run_on_a_full_disk_keeps_the_files_it_has_written(digits: Dataset, tmp_path):
    config = TrainConfig(model="mlp", hidden=(8,), epochs=2, batch_size=256)
    experiment = prepare(config, digits)
    with (
        little_room(),
        pytest.raises(OSError, match="File too large: .*params.msgpack"),
    ):
        train_into(experiment, {0: tmp_path})
    assert set(contents(tmp_path)) == {"config.json", "metrics.jsonl"}
    assert [
        line.epoch for line in read_jsonl(EpochRecord, tmp_path / "metrics.jsonl")
    ] == [1, 2]


def test_a_deleted_folder_ends_a_run_with_an_error(digits: Dataset, tmp_path):
    config = TrainConfig(model="mlp", hidden=(8,), epochs=2, batch_size=256)
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="metrics.jsonl"):
        for event in fit_into(prepare(config, digits), {0: folder}):
            if isinstance(event, Epoch):
                shutil.rmtree(folder)


def test_output_that_cannot_be_written_is_a_one_line_error():
    with open("/dev/full", "w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "experiments.summary", "--model=mlp"],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=300,
        )
    assert process.returncode == 1
    [line] = process.stderr.splitlines()
    assert line.startswith("error: [Errno 28] No space left on device")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A 64 kB file system; the test is skipped if none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this user may not mount a file system ({error})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_truly_full_disk_leaves_every_record_whole(small_disk: Path):
    path = small_disk / "runs.jsonl"
    written = 0
    with pytest.raises(OSError, match="No space left on device: .*runs.jsonl"):
        while True:
            append_jsonl(path, {"number": written, "pad": "x" * 1000})
            written += 1
    assert written > 50
    assert [json.loads(line)["number"] for line in read_lines(path)] == list(
        range(written)
    )
    assert path.read_bytes().endswith(b"\n")
    with pytest.raises(OSError, match="No space left on device"):
        write_file(small_disk / "params.msgpack", b"x" * 10_000)
    assert [file.name for file in small_disk.iterdir()] == ["runs.jsonl"]
