"""Records on disk and the tables made of them."""

import json
import multiprocessing
import os

import pandas as pd
import pytest

from mnist_jax.config import config_to_dict, default_config
from mnist_jax.errors import InputError
from mnist_jax.files import make_folder, write_file
from mnist_jax.records import (
    append_jsonl,
    available_cores,
    environment,
    read_jsonl,
    write_json,
)
from mnist_jax.tables import (
    comparison_frame,
    format_markdown,
    group_by_place,
    markdown_table,
)


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


def append_many(path, process):
    for number in range(50):
        append_jsonl(path, {"process": process, "number": number, "pad": "x" * 5000})


def test_processes_append_whole_lines(tmp_path):
    path = tmp_path / "lines.jsonl"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=append_many, args=(path, n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = {(line["process"], line["number"]) for line in read_jsonl(path)}
    assert len(lines) == 200


def test_damaged_line_is_named(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(InputError, match="lines.jsonl line 2"):
        list(read_jsonl(path))


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
