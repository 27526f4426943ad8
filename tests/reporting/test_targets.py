"""Tests of the time to target: columns of the table, and refused targets."""

import dataclasses

import pandas as pd
import pytest
from helpers.records import make_record

from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError
from mnist_jax.reporting.comparison import write_tables
from mnist_jax.reporting.tables import (
    comparison_frame,
    format_comparison,
    format_markdown,
)
from mnist_jax.reporting.targets import NOTE, check_targets, seconds_to_target


def test_the_time_is_the_sum_of_the_epochs_up_to_the_first_that_reaches_it():
    record = make_record()  # 1.5 s and 0.95, then 1 s each: 0.975, 0.983, 0.9875, 0.99
    found = [seconds_to_target(record, t) for t in (0.5, 0.95, 0.951, 0.98, 0.991)]
    assert found == [1.5, 1.5, 2.5, 3.5, None]
    worse = dataclasses.replace(record.epochs[4], val_accuracy=0.5)
    fell = dataclasses.replace(record, epochs=[*record.epochs[:4], worse])
    assert seconds_to_target(fell, 0.98) == 3.5


@pytest.mark.parametrize("validation", ["none", "test"])
def test_a_run_that_validates_elsewhere_reaches_no_target(validation):
    record = make_record(validation=validation)
    assert seconds_to_target(record, 0.5) is None


def test_columns_have_medians_of_the_seeds_that_reached_the_target():
    slow = make_record(seed=2)
    slow = dataclasses.replace(slow, epochs=slow.epochs[:2])
    rows = [make_record(seed=0), make_record(seed=1), slow]
    frame = comparison_frame(rows, [0.95, 0.98, 0.995])
    assert frame.iloc[0, -6:].to_dict() == pytest.approx(
        {
            **{"seconds_to_0.95": 2.5, "seeds_to_0.95": 3},
            **{"seconds_to_0.98": 5.0, "seeds_to_0.98": 2},
            **{"seconds_to_0.995": float("nan"), "seeds_to_0.995": 0},
        },
        nan_ok=True,
    )
    table = format_comparison(frame)
    assert table.filter(regex="^s to").iloc[0].to_dict() == {
        "s to 0.95": "2.50",
        "s to 0.98": "5.00 (2 of 3)",
        "s to 0.995": "-",
    }
    text = format_markdown(rows, [0.98])
    assert " s to 0.98 |" in text and f"- {NOTE}" in text
    assert "s to" not in format_markdown(rows)


def test_targets_are_written_as_numbers_and_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mnist_jax.reporting.comparison.read_runs", lambda *_: [make_record()]
    )
    write_tables(tmp_path, [0.98, 0.995])
    table = pd.read_csv(tmp_path / "compare.csv")
    assert table["seconds_to_0.98"].tolist() == [3.5]
    assert table["seconds_to_0.995"].isna().all()
    assert "s to 0.995" in (tmp_path / "compare.md").read_text()
    write_tables(tmp_path)
    assert not any("to_" in name for name in pd.read_csv(tmp_path / "compare.csv"))


@pytest.mark.parametrize(
    "targets", [["0"], [1], ["x"], [""], ["nan"], [0.9, -0.1], [None], 98]
)
def test_what_is_not_an_accuracy_is_refused(targets):
    with pytest.raises(InputError, match="--targets must be .* 0.98,0.99; got "):
        check_targets(targets)


@pytest.mark.parametrize("validation", ["none", "test"])
def test_targets_need_a_validation_set_from_the_training_set(validation):
    configs = [TrainConfig(), TrainConfig(validation=validation)]
    assert check_targets([], configs) == []
    with pytest.raises(
        InputError, match=f"--targets=0.9,0.95 needs .*--validation={validation};"
    ):
        check_targets(["0.9", 0.95], configs)
