"""Tests of the tables of run records."""

import dataclasses

import pandas as pd
from helpers.records import make_record

from mnist_jax.reporting.tables import (
    comparison_frame,
    format_comparison,
    format_markdown,
    group_by_row,
    group_by_table,
    markdown_table,
    pareto_frame,
    row_names,
)


def test_table_has_means_over_seeds_best_first():
    records = [
        make_record("mlp", 0, 0.96),
        make_record("cnn", 0, 0.99),
        make_record("mlp", 1, 0.98),
    ]
    frame = comparison_frame(records)
    assert frame["model"].tolist() == ["cnn", "mlp"]
    assert frame["test_accuracy"].tolist() == [0.99, 0.97]
    table = format_comparison(frame)
    assert table["test accuracy"].tolist() == ["0.9900 (n=1)", "0.9700 ± 0.0141 (n=2)"]
    assert table["steady s/epoch"].tolist() == ["1.00", "1.50"]


def test_accuracy_with_tta_has_a_column_of_its_own():
    record = dataclasses.replace(make_record("cnn"), tta_accuracy=0.995)
    table = format_comparison(comparison_frame([record, make_record("mlp")]))
    assert sorted(table["with TTA"]) == ["-", "0.9950"]
    assert "with TTA" not in format_comparison(comparison_frame([make_record()]))


def test_of_a_repeated_seed_only_the_later_run_counts():
    frame = comparison_frame([make_record(accuracy=0.5), make_record(accuracy=0.9)])
    assert frame["test_accuracy"].tolist() == [0.9] and frame["seeds"].tolist() == [1]


def test_different_settings_are_different_rows():
    frame = comparison_frame([make_record(), make_record(batch_size=32)])
    assert sorted(frame["settings"]) == ["", "batch_size=32"]


def test_different_machines_and_datasets_are_different_tables():
    small = dataclasses.replace(
        make_record(), checksum="def", dataset="digits", dataset_note="small stand-in"
    )
    records = [make_record(), make_record(device="CPU B"), small, make_record(seed=1)]
    assert [len(group) for group in group_by_table(records)] == [2, 1, 1]
    text = format_markdown(records)
    assert text.count("\n- device: ") == 3
    assert "DIGITS, NOT MNIST" in text and "**small stand-in**" in text


def test_a_run_of_one_epoch_has_no_steady_time():
    frame = comparison_frame([make_record(epochs=1)])
    assert frame["steady_epoch_seconds"].isna().all()
    assert format_comparison(frame)["steady s/epoch"].tolist() == ["-"]


def test_markdown_columns_are_aligned():
    text = markdown_table(pd.DataFrame({"a": ["long cell", "b"], "number": [1, 20]}))
    assert len({len(line) for line in text.splitlines()}) == 1
    assert text.splitlines()[0] == "| a         | number |"


def test_rows_that_differ_only_in_devices_have_unique_names():
    one = dataclasses.replace(make_record(), devices=1)
    names = row_names([[make_record()], [one], [make_record("cnn")]])
    assert names == [
        "mlp (impl=fast, devices=2)",
        "mlp (impl=fast, devices=1)",
        "cnn",
    ]


def test_the_pareto_front_has_what_no_other_row_dominates():
    rows = group_by_row(
        [
            make_record("cnn", 2, 0.99),  # 15.5 s
            make_record("mlp", 0, 0.98),  # 5.5 s
            make_record("mlp", 1, 0.96),  # 10.5 s
            make_record("mlp", 0, 0.96, hidden=(8,)),  # faster and smaller
            make_record("mlp", 0, 0.96, hidden=(8,), batch_size=64),  # the same
            make_record("mlp", 1, 0.96, hidden=(8,), batch_size=32),  # slower
        ]
    )
    frame = pareto_frame(rows)
    front = dict(zip(frame.index, frame["on_front"], strict=True))
    assert front == {
        "cnn": True,
        "mlp": True,  # slower and larger than the small ones, but more accurate
        "mlp hidden=8": True,
        "mlp hidden=8 batch_size=64": True,
        "mlp hidden=8 batch_size=32": False,
    }
    mlp = frame.loc["mlp"]
    assert (mlp["accuracy"], mlp["seconds"]) == (0.97, 8.0)
    assert mlp["parameters"] == rows[1][0].parameters
