"""Tests of the tables of run records."""

import dataclasses

import pandas as pd
from helpers.records import make_environment, make_record

from benchmarks.readme import RESULTS
from mnist_jax.records.schema import RunRecord, read_jsonl
from mnist_jax.reporting.comparison_plots import pareto_frame
from mnist_jax.reporting.tables import (
    comparison_frame,
    format_comparison,
    format_markdown,
    group_by_row,
    group_by_table,
    main_columns,
    markdown_table,
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
    first = make_record()
    small = dataclasses.replace(
        first, checksum="def", dataset="digits", dataset_note="small stand-in"
    )
    flags = [
        dataclasses.replace(first, environment=make_environment(**{name: "--a=1"}))
        for name in ("xla_flags", "numerics")
    ]
    other = make_record(device="CPU B")
    records = [first, other, small, *flags, make_record(seed=1)]
    assert [len(group) for group in group_by_table(records)] == [2, 1, 1, 1, 1]
    assert len({record.timing_key() for record in records}) == 6
    text = format_markdown(records)
    assert text.count("\n- device: ") == 5
    assert "numpy 1.2.3; XLA_FLAGS: --a=1" in text
    assert "numpy 1.2.3, --a=1; XLA_FLAGS: none" in text
    assert "DIGITS, NOT MNIST" in text and "**small stand-in**" in text


def test_a_run_of_one_epoch_has_no_steady_time():
    frame = comparison_frame([make_record(epochs=1)])
    assert frame["steady_epoch_seconds"].isna().all()
    assert format_comparison(frame)["steady s/epoch"].tolist() == ["-"]


def test_markdown_columns_are_aligned_and_numbers_at_the_right():
    columns = {
        "a": ["long cell", "b"],
        "number": [1, 20],
        "result": ["+0.01 [0.001, 0.1]", "-"],
        "size": ["3x3", "5x5"],
    }
    assert markdown_table(pd.DataFrame(columns)).splitlines() == [
        "| a         | number |             result | size |",
        "|-----------|-------:|-------------------:|------|",
        "| long cell |      1 | +0.01 [0.001, 0.1] | 3x3  |",
        "| b         |     20 |                  - | 5x5  |",
    ]


def test_what_all_rows_share_is_a_line_below_the_table():
    shared = dict(batch_size=32, hidden=(64, 64))
    records = [
        make_record(dropout=(0.5,), **shared),
        make_record(**shared),
        dataclasses.replace(make_record("cnn", batch_size=32), source_sha256="0" * 64),
    ]
    line = "\n- all rows: batch_size=32 devices=2\n"
    assert line in format_markdown(records)
    table = format_comparison(comparison_frame(records))
    assert not {"devices", "seeds together"} & set(table)
    assert sorted(table["settings"]) == ["", "hidden=64,64", "hidden=64,64 dropout=0.5"]
    names = row_names([[record] for record in records])
    assert names == ["mlp hidden=64,64 dropout=0.5", "mlp hidden=64,64", "cnn"]
    # In a table of one row nothing is repeated.
    assert "all rows" not in format_markdown(records[:1])
    assert row_names([records[:1]]) == ["mlp hidden=64,64 dropout=0.5 batch_size=32"]


def test_networks_of_one_name_keep_their_files_and_versions():
    base = make_record()

    def custom(model: str, source: str) -> RunRecord:
        config = dataclasses.replace(base.config, model=model)
        return dataclasses.replace(base, config=config, source_sha256=source * 64)

    names = [[custom(*row)] for row in (("a.py:Net", "0"), ("b.py:Net", "1"))]
    assert row_names(names) == ["a.py:Net source=00000000", "b.py:Net source=11111111"]
    names[1] = [custom("b.py:Other", "1")]
    assert row_names(names) == ["Net", "Other"]


def test_the_main_columns_fit_100_characters():
    records = read_jsonl(RunRecord, RESULTS / "compare.jsonl")
    records = [dataclasses.replace(record, compile_cached=True) for record in records]
    for row in (None, records[0].config):
        text = format_markdown(records, [0.98], row, all_columns=False)
        table = [line for line in text.splitlines() if line.startswith("|")]
        assert len(table) == 2 + len(group_by_row(records))
        assert max(map(len, table)) <= 100
        columns = table[0].replace("|", "").split("  ")
        asked = ["s to 0.98"] + ["difference"] * (row is not None)
        for column in ("model", "test accuracy", *asked, "s/epoch", "images/s"):
            assert column in map(str.strip, columns)


def test_rows_that_differ_only_in_devices_have_a_column():
    one = dataclasses.replace(make_record(), devices=1)
    table = main_columns(format_comparison(comparison_frame([make_record(), one])))
    assert list(table)[:3] == ["model", "devices", "test accuracy"]


def test_rows_that_differ_only_in_devices_have_unique_names():
    one = dataclasses.replace(make_record(), devices=1)
    names = row_names([[make_record()], [one], [make_record("cnn")]])
    assert names == [
        "mlp (impl=cpu, devices=2)",
        "mlp (impl=cpu, devices=1)",
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
