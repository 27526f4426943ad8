"""Records on disk: their environment, round trips and damaged files."""

import dataclasses
import subprocess

import pytest
from helpers.records import make_epochs, make_record

from mnist_jax.errors import InputError
from mnist_jax.records import environment
from mnist_jax.records.environment import available_cores, current_environment
from mnist_jax.records.schema import (
    RunRecord,
    append_jsonl,
    read_json,
    read_jsonl,
    write_json,
)


def test_environment_names_machine_and_versions():
    machine = current_environment()
    assert machine.cores == available_cores() >= 1
    assert machine.jax[0].isdigit() and machine.device
    later = dataclasses.replace(machine, load=9.0, date="", commit=None, dirty=True)
    assert later.compared() == machine.compared()
    assert dataclasses.replace(machine, jax="0").compared() != machine.compared()


def test_a_checkout_with_only_untracked_files_has_no_uncommitted_changes(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(environment, "_PACKAGE", tmp_path / "package")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "tracked").touch()
    assert current_environment().dirty is None
    for words in (["init", "-q"], ["add", "tracked"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "results").touch()
    assert current_environment().dirty is False
    (tmp_path / "tracked").write_text("changed")
    assert current_environment().dirty is True


@pytest.mark.parametrize(
    "record", [make_record("cnn"), make_record("lstm", epochs=1), make_epochs(1)[0]]
)
def test_records_round_trip_through_json(record, tmp_path):
    write_json(tmp_path / "record.json", record)
    assert read_json(type(record), tmp_path / "record.json") == record
    append_jsonl(tmp_path / "records.jsonl", record)
    assert read_jsonl(type(record), tmp_path / "records.jsonl") == [record]


DAMAGED = [
    b'{"a": ',  # torn
    b"\0" * 40,  # possible after a machine crash
    b"[1]",
    b'{"config": {}}',
    b'{"colour": "blue"}',
    b'{"config": {"hidden": [16, "x"]}}',
]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_line_is_named_and_skipped_but_not_removed(tmp_path, caplog, damaged):
    path = tmp_path / "runs.jsonl"
    path.write_bytes(damaged + b"\n")
    append_jsonl(path, make_record())
    assert read_jsonl(RunRecord, path) == [make_record()]
    [message] = caplog.messages
    assert message.startswith(f"{path} line 1 is damaged (")
    assert path.read_bytes().startswith(damaged)


def test_a_damaged_file_is_refused_by_name(tmp_path):
    path = tmp_path / "record.json"
    with pytest.raises(OSError, match=r"No such file .*record.json"):
        read_json(RunRecord, path)
    for content in DAMAGED:
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"record.json is damaged \("):
            read_json(RunRecord, path)
