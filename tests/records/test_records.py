"""Records on disk: types, damaged lines, concurrent writers."""

import errno
import json
import math
import os
import subprocess

import pytest
from helpers.processes import run_at_once, run_script
from helpers.records import make_epochs, make_record

from mnist_jax.errors import InputError
from mnist_jax.records import environment
from mnist_jax.records.environment import available_cores, current_environment
from mnist_jax.records.files import read_lines, write_file
from mnist_jax.records.schema import (
    RunRecord,
    append_jsonl,
    plain,
    read_json,
    read_jsonl,
    write_json,
)


def test_environment_names_machine_and_versions():
    machine = current_environment()
    assert machine.cores == available_cores() >= 1
    assert machine.jax[0].isdigit() and machine.device
    json.dumps(plain(machine))


def test_a_checkout_with_only_untracked_files_has_no_uncommitted_changes(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(environment, "_PACKAGE", tmp_path / "package")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "tracked").touch()
    for words in (["init", "-q"], ["add", "tracked"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "results").touch()
    assert current_environment().dirty is False
    (tmp_path / "tracked").write_text("changed")
    assert current_environment().dirty is True


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
    run_at_once(APPEND, path)
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
        for row in run_script(KILLED, path).split("\n")
        if row
    }
    lines = read_jsonl(dict, path)
    read = [(line["process"], line["number"]) for line in lines]
    assert written <= set(read) and len(read) == len(set(read))
    assert {len(line["pad"]) for line in lines} == {300_000}
    record_property("kills: of processes that appended", 200)
    record_property("kills: lines appended before", len(written))
    torn = len(read_lines(path)) - len(lines)
    record_property("kills: torn lines", torn)
    assert written
    path.unlink()  # several hundred megabytes


def test_a_partial_write_is_completed_or_rolled_back(tmp_path, monkeypatch):
    path = tmp_path / "lines.jsonl"
    append_jsonl(path, {"a": 1})
    before, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda file, rest: write(file, rest[:3]))
    append_jsonl(path, {"b": 2})
    assert read_jsonl(dict, path) == [{"a": 1}, {"b": 2}]
    path.write_bytes(before)

    def fill_disk(file: int, rest: memoryview) -> int:
        if len(rest) < 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, rest[:3])

    monkeypatch.setattr(os, "write", fill_disk)
    with pytest.raises(OSError, match="No space left .*lines.jsonl"):
        append_jsonl(path, {"b": 2})
    assert path.read_bytes() == before


DAMAGED = [
    b'{"a": ',  # torn
    b"",
    b"\0" * 40,  # possible after a machine crash
    b'"text"',
    b"[1]",
    b'{"a": "\xff"}',
]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_line_is_named_and_skipped_but_not_removed(tmp_path, caplog, damaged):
    path = tmp_path / "lines.jsonl"
    content = b'{"a": 1}\n' + damaged + b'\n{"a": 3}\n'
    path.write_bytes(content)
    assert read_jsonl(dict, path) == [{"a": 1}, {"a": 3}]
    [message] = caplog.messages
    assert message.startswith(f"{path} line 2 is damaged (")
    append_jsonl(path, {"a": 4})
    assert path.read_bytes() == content + b'{"a": 4}\n'


def test_a_line_after_a_torn_one_is_read(tmp_path, caplog):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    append_jsonl(path, {"a": 3})
    assert read_jsonl(dict, path) == [{"a": 1}, {"a": 3}]
    assert "line 2 is damaged" in caplog.text


# Invalid values by field name, `...` for none.
WRONG = {
    "config": ["mlp", None, {"model": "vit"}, {"hidden": [16, "x"]}, {"colour": 1}]
    + [{"learning_rate": 10**400}, {"momentum": math.nan}, {"epochs": True}],
    "dataset": [None, 7, ...],
    "parameters": ["7", 7.5, True, None, [7], {}, ...],
    "compile_cached": [1, "yes"],
    "test_accuracy": ["0.97", None, [0.97], True, ...],
    "steady_epoch_seconds": ["1.0"],
    "epochs": [{}, [1], [{"epoch": 1}], ...],
    "environment": [[], "CPU", {"device": 7}, ...],
    "colour": ["blue"],
}


@pytest.mark.parametrize("name", WRONG)
def test_a_field_of_the_wrong_type_is_named_and_left_out(tmp_path, caplog, name):
    path = tmp_path / "runs.jsonl"
    for wrong in WRONG[name]:
        record = {**plain(make_record()), name: wrong}
        if wrong is ...:
            del record[name]
        path.write_text("")
        append_jsonl(path, record)
        append_jsonl(path, make_record(seed=1))
        caplog.clear()
        assert [run.config.seed for run in read_jsonl(RunRecord, path)] == [1]
        [message] = caplog.messages
        assert message.startswith(f"{path} line 1 ") and name in message


@pytest.mark.parametrize(
    "record", [make_record("cnn"), make_record("lstm", epochs=1), make_epochs(1)[0]]
)
def test_records_round_trip_through_json(record, tmp_path):
    write_json(tmp_path / "record.json", record)
    assert read_json(type(record), tmp_path / "record.json") == record
    append_jsonl(tmp_path / "records.jsonl", record)
    assert read_jsonl(type(record), tmp_path / "records.jsonl") == [record]


def test_a_damaged_file_is_refused_by_name(tmp_path):
    path = tmp_path / "record.json"
    with pytest.raises(InputError, match="cannot read .*record.json"):
        read_json(RunRecord, path)
    for content in (b"", b"{", b"\xff", b"[1]", b'{"config": {}}'):
        path.write_bytes(content)
        with pytest.raises(InputError, match="record.json"):
            read_json(RunRecord, path)


def test_a_failed_write_leaves_the_existing_file(tmp_path):
    file = tmp_path / "file"
    write_file(file, "old")
    below = file / "x.json"  # a path below a regular file cannot be created
    with pytest.raises(OSError, match="Not a directory"):
        write_json(below, {})
    with pytest.raises(OSError, match="Not a directory"):
        append_jsonl(below, {})
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["file"]
