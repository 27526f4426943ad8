"""Files and locks: modes, full disks, concurrent and killed writers."""

import contextlib
import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import AT_ONCE, run_python
from helpers.runs import train_into

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.records.files import check_append, hold_lock, write_file
from mnist_jax.records.schema import EpochRecord, append_jsonl, read_jsonl, write_json
from mnist_jax.training.checkpoints import save_params
from mnist_jax.training.prepare import prepare

ROOM = 5_000  # maximum size of a file in bytes


@pytest.mark.parametrize(
    "umask, mode", [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)]
)
def test_files_have_the_modes_of_the_umask(umask, mode, tmp_path):
    before = os.umask(umask)
    try:
        folder = tmp_path / "folder"
        with hold_lock(folder / ".lock"):
            write_file(folder / "written", "")
            append_jsonl(folder / "appended", {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {mode}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


def test_what_cannot_be_appended_to_is_refused_before_any_work(tmp_path):
    with pytest.raises(OSError, match=f"Is a directory: '{tmp_path}'"):
        check_append(tmp_path)
    check_append(tmp_path / "new" / "lines.jsonl")
    assert (tmp_path / "new" / "lines.jsonl").read_text() == ""


def test_a_lock_is_refused_while_it_is_held(tmp_path):
    path = tmp_path / "folder" / ".lock"
    for _ in range(2):  # released
        with hold_lock(path), pytest.raises(InputError), hold_lock(path, "held"):
            pass


# Full disks


@contextlib.contextmanager
def little_room() -> Iterator[None]:
    """Limits the size of files to `ROOM`, beyond which a write is partial and fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the files of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_file(path, "x" * 2 * ROOM),
        lambda path: write_json(path, ["x"] * ROOM),
        lambda path: save_params(path, {"w": np.zeros(ROOM)}),
    ],
)
def test_a_full_disk_leaves_the_existing_file(tmp_path, write):
    path = tmp_path / "file"
    path.write_text("earlier\n")
    before = contents(tmp_path)
    with little_room(), pytest.raises(OSError, match="File too large"):
        write(path)
    assert contents(tmp_path) == before


def test_a_record_on_a_full_disk_harms_no_other(tmp_path, caplog):
    path = tmp_path / "lines.jsonl"
    append_jsonl(path, {"a": 1})
    with little_room(), pytest.raises(OSError, match="File too large"):
        append_jsonl(path, {"a": "x" * 2 * ROOM})
    append_jsonl(path, {"a": 3})
    assert read_jsonl(dict, path) == [{"a": 1}, {"a": 3}]
    assert "line 2 is damaged" in caplog.text


def test_a_run_on_a_full_disk_keeps_the_files_it_has_written(digits: Dataset, tmp_path):
    config = TrainConfig(model="mlp", hidden=(8,), epochs=2, batch_size=256)
    experiment = prepare(config, digits)
    with little_room(), pytest.raises(OSError, match="File too large"):
        train_into(experiment, {0: tmp_path})
    assert set(contents(tmp_path)) == {"config.json", "metrics.jsonl"}
    epochs = read_jsonl(EpochRecord, tmp_path / "metrics.jsonl")
    assert [line.epoch for line in epochs] == [1, 2]


# Several writers

APPEND = """
import sys
from pathlib import Path
from mnist_jax.records.schema import append_jsonl

def work(process):
    for number in range(50):
        line = {"process": process, "number": number, "pad": "x" * 5000}
        append_jsonl(Path(sys.argv[1]), line)
"""


def test_eight_processes_append_whole_lines(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"torn": ')
    run_python("-c", APPEND + AT_ONCE, path)
    lines = path.read_bytes().split(b"\n")
    assert lines[0] == b'{"torn": ' and lines[-1] == b""
    values = [json.loads(line) for line in lines[1:-1]]
    assert {len(value["pad"]) for value in values} == {5000}
    assert sorted((value["process"], value["number"]) for value in values) == [
        (process, number) for process in range(8) for number in range(50)
    ]


# Kills processes while they append lines of 300 kB; each reports what it has written.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from mnist_jax.records.schema import append_jsonl

random.seed(0)
reader, writer = os.pipe()
os.set_blocking(reader, False)
for process in range(200):
    if (child := os.fork()) == 0:
        for number in range(1000):
            line = {"process": process, "number": number, "pad": "x" * 300_000}
            append_jsonl(Path(sys.argv[1]), line)
            os.write(writer, f"{process} {number}\\n".encode())
    time.sleep(random.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        print(os.read(reader, 60_000).decode(), end="")
    except BlockingIOError:
        pass  # killed before its first line
"""


@pytest.mark.faults
def test_killed_processes_lose_no_line_that_was_written(tmp_path, record_property):
    path = tmp_path / "lines.jsonl"
    written = {
        tuple(map(int, row.split()))
        for row in run_python("-c", KILLED, path).stdout.split("\n")
        if row
    }
    lines = read_jsonl(dict, path)
    read = [(line["process"], line["number"]) for line in lines]
    assert written <= set(read) and len(read) == len(set(read))
    assert {len(line["pad"]) for line in lines} == {300_000}
    record_property("kills: of processes that appended", 200)
    record_property("kills: lines appended before", len(written))
    torn = path.read_bytes().count(b"\n") - len(lines)
    record_property("kills: torn lines", torn)
    assert written
    path.unlink()  # several hundred megabytes
