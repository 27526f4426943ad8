"""Differences from a row of the comparison table."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from helpers.records import make_environment, make_record
from scipy import stats

from mnist_jax import TrainConfig, compare
from mnist_jax.errors import InputError
from mnist_jax.models.custom import network_sha256
from mnist_jax.reporting.tables import (
    comparison_frame,
    format_comparison,
    format_markdown,
)

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
    assert "mean test accuracy less that of cnn" in format_markdown(
        RECORDS, (), AGAINST
    )
    assert "difference" not in format_markdown(RECORDS)
    other = TrainConfig(model="cnn", batch_size=7)
    assert "difference" not in comparison_frame(RECORDS, against=other)


def test_the_row_is_that_of_the_present_source_and_the_latest():
    path = Path(__file__).parents[2] / "examples" / "residual_mlp.py"
    model = f"{path}:ResidualMLP"
    present = network_sha256(TrainConfig(model=model))
    record = make_record(model)

    def version(source: str, accuracy: float, day: int, devices: int = 2):
        return dataclasses.replace(
            record,
            source_sha256=source,
            test_accuracy=accuracy,
            devices=devices,
            environment=make_environment(date=f"2026-01-0{day}T00:00:00+00:00"),
        )

    versions = [
        version("0" * 64, 0.99, 4),  # the best, and recorded last
        version(present, 0.98, 1, devices=1),
        version(present, 0.97, 3),
    ]
    frame = comparison_frame(versions, against=record.config)
    assert math.isnan(frame["difference"][2])
    assert frame["difference"][:2].tolist() == pytest.approx([0.02, 0.01])


@pytest.mark.slow
def test_compare_takes_one_of_its_configs(digits):
    configs = [TrainConfig(dataset="digits", hidden=h, epochs=1) for h in ((), (8,))]
    frame = compare(configs, 2, dataset=digits, against=configs[0], quiet=True)
    assert frame["difference"].notna().sum() == 1
    with pytest.raises(InputError, match="one of its configs"):
        compare(configs[:1], against=configs[1], quiet=True)
