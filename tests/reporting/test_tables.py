"""Tests of the tables of run records: rows, targets, differences, text."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from helpers.processes import ROOT
from helpers.records import make_environment, make_record, recorded_runs, rows_of
from scipy import stats

from mnist_jax.config import TrainConfig
from mnist_jax.models.custom import network_sha256
from mnist_jax.records.schema import RunRecord
from mnist_jax.reporting.plots import pareto_frame
from mnist_jax.reporting.statistics import welch_difference
from mnist_jax.reporting.tables import (
    comparison_frame,
    format_comparison,
    format_markdown,
    group_by_row,
    group_by_table,
    markdown_table,
    provenance,
    seconds_to_target,
)

ONE_DEVICE = dataclasses.replace(make_record(), devices=1)


def test_table_has_means_over_seeds_best_first():
    records = [
        make_record("mlp", 0, 0.5),
        make_record("mlp", 0, 0.96),  # of a repeated seed the later run counts
        make_record("cnn", 0, 0.99, epochs=1),
        make_record("mlp", 1, 0.98),
    ]
    frame = comparison_frame(records)
    assert frame["model"].tolist() == ["cnn", "mlp"]
    assert frame["seeds"].tolist() == [1, 2]
    table = format_comparison(frame)
    assert table["test accuracy"].tolist() == ["0.9900 (n=1)", "0.9700 ± 0.0141 (n=2)"]
    # A run of one epoch has no steady time.
    assert table["steady s/epoch"].tolist() == ["-", "1.50"]


def test_accuracy_with_tta_has_a_column_of_its_own():
    record = dataclasses.replace(make_record("cnn"), tta_accuracy=0.995)
    table = format_comparison(comparison_frame([record, make_record("mlp")]))
    assert sorted(table["with TTA"]) == ["-", "0.9950"]
    assert "with TTA" not in format_comparison(comparison_frame([make_record()]))


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
    text = format_markdown(records)
    assert text.count("\n- device: ") == 5
    assert "numpy 1.2.3; XLA_FLAGS: --a=1" in text
    assert "numpy 1.2.3, --a=1; XLA_FLAGS: none" in text
    assert "DIGITS, NOT MNIST" in text and "- small stand-in\n" in text


def test_markdown_columns_are_aligned_and_numbers_at_the_right():
    columns = {
        "a": ["long cell", "b"],
        "number": [1, 20],
        "result": ["+0.01 [0.001, 0.1]", "-"],
        "size": ["3x3", "5x5"],
    }
    assert markdown_table(pd.DataFrame(columns), ["note"]).splitlines() == [
        "| a         | number |             result | size |",
        "|-----------|-------:|-------------------:|------|",
        "| long cell |      1 | +0.01 [0.001, 0.1] | 3x3  |",
        "| b         |     20 |                  - | 5x5  |",
        "",
        "- note",
    ]


def test_what_all_rows_share_is_a_line_below_the_table():
    shared = dict(batch_size=32, hidden=(64, 64))
    records = [
        make_record(dropout=(0.5,), **shared),
        make_record(**shared),
        dataclasses.replace(make_record("cnn", batch_size=32), source_sha256="0" * 64),
    ]
    assert "\n- all rows: batch_size=32 devices=2\n" in format_markdown(records)
    table = format_comparison(comparison_frame(records))
    assert not {"devices", "seeds together"} & set(table)
    assert sorted(table["settings"]) == ["", "hidden=64,64", "hidden=64,64 dropout=0.5"]
    names = ["mlp hidden=64,64 dropout=0.5", "mlp hidden=64,64", "cnn"]
    assert [*rows_of(records)] == names
    # In a table of one row nothing is repeated.
    assert "all rows" not in format_markdown(records[:1])
    assert [*rows_of(records[:1])] == ["mlp hidden=64,64 dropout=0.5 batch_size=32"]


def custom(model: str, source: str, **fields: object) -> RunRecord:
    """Returns the record of a run of a custom network."""
    record = make_record()
    config = dataclasses.replace(record.config, model=model, **fields)
    return dataclasses.replace(record, config=config, source_sha256=source * 64)


@pytest.mark.parametrize(
    "records, names",
    [
        (
            [custom("a.py:Net", "0"), custom("b.py:Net", "1")],
            ["a.py:Net source=00000000", "b.py:Net source=11111111"],
        ),
        ([custom("a.py:Net", "0"), custom("b.py:Other", "1")], ["Net", "Other"]),
        (
            [custom("a.py:Net", "0", model_args=(f"k='{k} layer'",)) for k in "12"],
            ["Net model_args=k='1 layer'", "Net model_args=k='2 layer'"],
        ),
        ([make_record(), ONE_DEVICE], ["mlp devices=2", "mlp devices=1"]),
        ([make_record("cnn"), ONE_DEVICE], ["cnn", "mlp"]),
    ],
)
def test_rows_are_named_by_what_distinguishes_them(records, names):
    assert [*rows_of(records)] == names


def test_the_main_columns_fit_100_characters():
    records = [dataclasses.replace(r, compile_cached=True) for r in recorded_runs()]
    for row in (None, records[0].config):
        text = format_markdown(records, [0.98], row, all_columns=False)
        table = [line for line in text.splitlines() if line.startswith("|")]
        assert len(table) == 2 + len(group_by_row(records))
        assert max(map(len, table)) <= 100
        columns = table[0].replace("|", "").split("  ")
        asked = ["s to 0.98"] + ["difference"] * (row is not None)
        for column in ("model", "test accuracy", *asked, "s/epoch", "images/s"):
            assert column in map(str.strip, columns)


def test_the_pareto_front_has_what_no_other_row_dominates():
    records = [
        make_record("cnn", 2, 0.99),  # 15.5 s
        make_record("mlp", 0, 0.98),  # 5.5 s
        make_record("mlp", 1, 0.96),  # 10.5 s
        make_record("mlp", 0, 0.96, hidden=(8,)),  # faster and smaller
        make_record("mlp", 0, 0.96, hidden=(8,), batch_size=64),  # the same
        make_record("mlp", 1, 0.96, hidden=(8,), batch_size=32),  # slower
    ]
    frame = pareto_frame(rows_of(records))
    assert frame["on_front"].to_dict() == {
        "cnn": True,
        "mlp": True,  # slower and larger than the small ones, but more accurate
        "mlp hidden=8": True,
        "mlp hidden=8 batch_size=64": True,
        "mlp hidden=8 batch_size=32": False,
    }
    assert frame.loc["mlp", ["accuracy", "seconds"]].tolist() == [0.97, 8.0]


def test_the_time_to_a_target_is_the_sum_of_the_epochs_that_reach_it():
    record = make_record()  # 1.5 s and 0.95, then 1 s each: 0.975, 0.983, 0.9875, 0.99
    found = [seconds_to_target(record, t) for t in (0.5, 0.95, 0.951, 0.98)]
    assert found == [1.5, 1.5, 2.5, 3.5]
    assert math.isnan(seconds_to_target(record, 0.991))
    worse = dataclasses.replace(record.epochs[4], val_accuracy=0.5)
    fell = dataclasses.replace(record, epochs=[*record.epochs[:4], worse])
    assert seconds_to_target(fell, 0.98) == 3.5
    # The test set reaches no target.
    assert math.isnan(seconds_to_target(make_record(validation="test"), 0.5))


def test_columns_have_medians_of_the_seeds_that_reached_the_target():
    slow = make_record(seed=2)
    slow = dataclasses.replace(slow, epochs=slow.epochs[:2])
    rows = [make_record(seed=0), make_record(seed=1), slow]
    frame = comparison_frame(rows, [0.95, 0.98, 0.995])
    assert frame.filter(regex=r"^seeds_to_\d").iloc[0].tolist() == [3, 2, 0]
    table = format_comparison(frame)
    assert table.filter(regex="^s to").iloc[0].to_dict() == {
        "s to 0.95": "2.50",
        "s to 0.98": "5.00 (2 of 3)",
        "s to 0.995": "-",
    }
    text = format_markdown(rows, [0.98])
    assert " s to 0.98 |" in text and "\n- s to a target: " in text
    assert "s to" not in format_markdown(rows)


CNN, MLP = (0.990, 0.992, 0.991), (0.980, 0.981, 0.984)
RECORDS = [make_record("cnn", seed, accuracy) for seed, accuracy in enumerate(CNN)]
RECORDS += [make_record("mlp", seed, accuracy) for seed, accuracy in enumerate(MLP)]
AGAINST = RECORDS[0].config


def test_differences_are_paired_by_seed():
    lone = make_record("lstm", 1, 0.985)  # one seed in common: no interval
    records = [*RECORDS[::-1], lone]
    frame = comparison_frame(records, against=AGAINST).set_index("model")
    pairs = np.array(MLP) - np.array(CNN)
    low, high = stats.t.interval(0.95, 2, pairs.mean(), stats.sem(pairs))
    columns = ["difference", "difference_low", "difference_high"]
    assert frame.loc["mlp", columns].tolist() == pytest.approx(
        [-0.00933, low, high], 1e-3
    )
    assert frame.loc["lstm", "difference"] == pytest.approx(-0.007)
    assert math.isnan(frame.loc["lstm", "difference_low"])
    assert frame.loc["cnn", columns].isna().all()


def test_the_table_names_the_row_and_shows_intervals():
    frame = format_comparison(comparison_frame(RECORDS, against=AGAINST))
    assert frame["difference"].tolist() == ["-", "-0.0093 [-0.0145, -0.0042]"]
    text = format_markdown(RECORDS, (), AGAINST)
    assert "mean test accuracy less that of cnn, over" in text
    assert "difference" not in format_markdown(RECORDS)
    other = TrainConfig(model="cnn", batch_size=7)
    assert "difference" not in format_markdown(RECORDS, against=other)


def test_the_row_is_that_of_the_present_source_and_the_latest():
    config = TrainConfig(model=f"{ROOT}/examples/residual_mlp.py:ResidualMLP")
    present = network_sha256(config)
    versions = [
        dataclasses.replace(
            make_record(config.model, accuracy=accuracy),
            source_sha256=source,
            devices=devices,
            environment=make_environment(date=f"2026-01-0{day}T00:00:00+00:00"),
        )
        for source, accuracy, day, devices in (
            ("0" * 64, 0.99, 4, 2),  # the best, and recorded last
            (present, 0.98, 1, 1),
            (present, 0.97, 3, 2),
        )
    ]
    frame = comparison_frame(versions, against=versions[0].config)
    assert math.isnan(frame["difference"][2])
    assert frame["difference"][:2].tolist() == pytest.approx([0.02, 0.01])


def test_one_value_has_no_interval():
    assert np.isnan(welch_difference([0.9], [0.9, 0.8])[1:]).all()


def test_the_code_of_records_is_described():
    """Also of an installed package, which has no commit."""
    changes = dict(dirty=True), dict(commit=None, dirty=None)
    runs = [make_record(seed=seed) for seed in (0, 1)]
    runs = [
        dataclasses.replace(run, environment=make_environment(**change))
        for run, change in zip(runs, changes, strict=True)
    ]
    lines = provenance(runs)
    assert "commit: 0123456789abcd with uncommitted changes, not a checkout" in lines
