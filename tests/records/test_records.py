"""Records on disk and the tables made of them."""

import dataclasses
import errno
import functools
import json
import os

import pandas as pd
import pytest
from helpers.processes import run_at_once, run_script

from mnist_jax.config import config_to_dict, default_config
from mnist_jax.errors import InputError
from mnist_jax.records.files import make_folder, write_file
from mnist_jax.records.schema import (
    PLACE,
    append_jsonl,
    available_cores,
    environment,
    read_jsonl,
    write_json,
)
from mnist_jax.reporting.tables import (
    NEEDED,
    comparison_frame,
    format_markdown,
    group_by_place,
    markdown_table,
)
from mnist_jax.training.recorded import recorded_seeds


def make_record(model="mlp", seed=0, accuracy=0.97, device="CPU A", **changes):
    """Returns a run record as read from disk."""
    config = config_to_dict(default_config(model, seed=seed, **changes))
    versions = dict.fromkeys(("python", "jax", "jaxlib", "flax", "optax", "numpy"), "1")
    return {
        "config": config,
        "dataset": "mnist",
        "dataset_note": "",
        "checksum": "abc",
        "parameters": 118282,
        "kernels": "fast",
        "devices": 2,
        "test_accuracy": accuracy,
        "test_loss": 0.1,
        "compile_seconds": 2.0,
        "first_epoch_seconds": 1.5,
        "steady_epoch_seconds": 1.0 + seed,
        "train_images_per_second": 60000.0,
        "step_milliseconds": 2.0,
        "evaluate_images_per_second": 90000.0,
        "total_seconds": 9.0,
        "environment": {
            "device": device,
            "platform": "cpu",
            "cores": 2,
            "xla_flags": "",
            "commit": "0123456789abcdef",
            "dirty": False,
            "date": "2026-01-01T00:00:00+00:00",
            "load": 0.5,
            **versions,
        },
    }


def test_table_has_means_over_seeds_best_first():
    records = [
        make_record("mlp", 0, 0.96),
        make_record("cnn", 0, 0.99),
        make_record("mlp", 1, 0.98),
    ]
    frame = comparison_frame(records)
    assert frame["model"].tolist() == ["cnn", "mlp"]
    assert frame["test accuracy"].tolist() == ["0.9900 (n=1)", "0.9700 ± 0.0141 (n=2)"]
    assert frame["steady s/epoch"].tolist() == ["1.00", "1.50"]


def test_a_repeated_seed_counts_once_and_the_later_wins():
    frame = comparison_frame([make_record(accuracy=0.5), make_record(accuracy=0.9)])
    assert frame["test accuracy"].tolist() == ["0.9000 (n=1)"]


def test_other_settings_are_other_rows():
    frame = comparison_frame([make_record(), make_record(batch_size=32)])
    assert sorted(frame["settings"]) == ["", "batch_size=32"]


def test_other_machines_and_data_are_other_tables():
    small = make_record() | {
        "checksum": "def",
        "dataset": "digits",
        "dataset_note": "small stand-in",
    }
    records = [make_record(), make_record(device="CPU B"), small, make_record(seed=1)]
    assert [len(group) for group in group_by_place(records)] == [2, 1, 1]
    text = format_markdown(records)
    assert text.count("\n- device: ") == 3
    assert "DIGITS, NOT MNIST" in text and "**small stand-in**" in text


def test_one_epoch_has_no_steady_time():
    frame = comparison_frame([make_record() | {"steady_epoch_seconds": None}])
    assert frame["steady s/epoch"].tolist() == ["-"]


def test_markdown_is_aligned():
    text = markdown_table(pd.DataFrame({"a": ["long cell", "b"], "number": [1, 20]}))
    assert len({len(line) for line in text.splitlines()}) == 1
    assert text.splitlines()[0] == "| a         | number |"


def test_environment_names_machine_and_versions():
    machine = environment()
    assert machine["cores"] == available_cores() >= 1
    assert machine["jax"][0].isdigit() and machine["device"]
    json.dumps(machine)


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


# Kills processes while they append lines of 300 kB; each tells of lines it has written.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from mnist_jax.records.schema import append_jsonl

random.seed(0)
told, tell = os.pipe()
os.set_blocking(told, False)
for process in range(200):
    if (child := os.fork()) == 0:
        for number in range(1000):
            line = {"process": process, "number": number, "pad": "x" * 300_000}
            append_jsonl(Path(sys.argv[1]), line)
            os.write(tell, f"{process} {number}\\n".encode())
    time.sleep(random.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    try:
        print(os.read(told, 60_000).decode(), end="")
    except BlockingIOError:
        pass  # killed before its first line
"""


@pytest.mark.faults
def test_killed_processes_lose_no_line_that_was_written(
    tmp_path, caplog, record_property
):
    path = tmp_path / "lines.jsonl"
    written = {
        tuple(map(int, row.split()))
        for row in run_script(KILLED, path).split("\n")
        if row
    }
    lines = read_jsonl(path)
    read = [(line["process"], line["number"]) for line in lines]
    assert written <= set(read) and len(read) == len(set(read))
    assert {len(line["pad"]) for line in lines} == {300_000}
    record_property("kills: of processes that appended", 200)
    record_property("kills: lines appended before", len(written))
    record_property("kills: torn lines named", len(caplog.messages))
    assert written
    path.unlink()  # some hundred megabytes


def test_a_line_that_stops_half_way_is_finished_or_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "lines.jsonl"
    append_jsonl(path, {"a": 1})
    before, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda file, rest: write(file, rest[:3]))
    append_jsonl(path, {"b": 2})
    assert read_jsonl(path) == [{"a": 1}, {"b": 2}]
    path.write_bytes(before)

    def fill_disk(file: int, rest: memoryview) -> int:
        if len(rest) < 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, rest[:3])

    monkeypatch.setattr(os, "write", fill_disk)
    with pytest.raises(InputError, match="cannot write .*lines.jsonl: No space left"):
        append_jsonl(path, {"b": 2})
    assert path.read_bytes() == before


DAMAGED = [
    b'{"a": ',  # torn
    b"",
    b"\0" * 40,  # what a crash of the machine may leave
    b'"text"',
    b"[1]",
    b'{"a": "\xff"}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_line_is_named_and_left_out_and_left_alone(tmp_path, caplog, damaged):
    path = tmp_path / "lines.jsonl"
    content = b'{"a": 1}\n' + damaged + b'\n{"a": 3}\n'
    path.write_bytes(content)
    assert read_jsonl(path) == [{"a": 1}, {"a": 3}]
    [message] = caplog.messages
    assert message == f"{path} line 2 is damaged and is left out"
    append_jsonl(path, {"a": 4})
    assert path.read_bytes() == content + b'{"a": 4}\n'


def test_a_line_after_a_torn_one_is_read(tmp_path, caplog):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": ')
    append_jsonl(path, {"a": 3})
    assert read_jsonl(path) == [{"a": 1}, {"a": 3}]
    assert "line 2 is damaged" in caplog.text


@pytest.mark.parametrize("field", NEEDED)
def test_a_record_that_lacks_a_field_is_named_and_left_out(tmp_path, caplog, field):
    path, record = tmp_path / "runs.jsonl", make_record()
    *parents, name = field.split(".")
    within = functools.reduce(dict.__getitem__, parents, record)
    del within[name]
    append_jsonl(path, record)
    append_jsonl(path, make_record(seed=1))
    records = read_jsonl(path, NEEDED)
    assert [record["config"]["seed"] for record in records] == [1]
    assert caplog.messages == [f"{path} line 1 lacks {field} and is left out"]


def test_tables_ask_for_no_field_beyond_those_they_need():
    whole, record = make_record(), {}
    for field in NEEDED:
        target, source = record, whole
        *parents, name = field.split(".")
        for parent in parents:
            target, source = target.setdefault(parent, {}), source[parent]
        target[name] = source[name]
    assert format_markdown([record])


def test_runs_on_record_are_known_by_all_that_decides_them(digits, monkeypatch):
    config = default_config("mlp")
    place = {
        "checksum": digits.checksum,
        "dataset_note": digits.note,
        "environment": environment(),
    }
    records = [make_record(seed=seed) | place for seed in (0, 2)]
    assert recorded_seeds(records, config, digits) == {0, 2}
    assert recorded_seeds(records, default_config("mlp", seed=5), digits) == {0, 2}
    assert recorded_seeds(records, default_config("mlp", epochs=6), digits) == set()
    assert recorded_seeds(records, config, digits, "av_dnn") == set()
    other = dataclasses.replace(digits, checksum="another")
    assert recorded_seeds(records, config, other) == set()
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    assert recorded_seeds(records, config, digits) == set()
    for name in PLACE:
        changed = {"environment": environment() | {name: "another", "xla_flags": ""}}
        monkeypatch.setenv("XLA_FLAGS", "")
        assert recorded_seeds([records[0] | changed], config, digits) == set()


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path):
    file = tmp_path / "file"
    write_file(file, "old")
    below = file / "x.json"  # a path below a regular file can never be made
    with pytest.raises(InputError, match="cannot write"):
        write_json(below, {})
    with pytest.raises(InputError, match="cannot write"):
        append_jsonl(below, {})
    with pytest.raises(InputError, match="cannot write"):
        make_folder(below)
    assert file.read_text() == "old" and os.listdir(tmp_path) == ["file"]
