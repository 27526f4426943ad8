"""Differences of mean accuracies from those of one row of a table, paired by seed."""

import dataclasses
import math
from collections.abc import Sequence

import pandas as pd

from mnist_jax.config import TrainConfig
from mnist_jax.models.custom import network_sha256
from mnist_jax.records.schema import RunRecord
from mnist_jax.reporting.intervals import Interval, paired_difference

NOTE = (
    "difference: mean test accuracy less that of {}, over the seeds of both, with its "
    "95 % interval (Student's t, paired by seed)"
)
_COLUMNS = ("difference", "difference_low", "difference_high")


def find_row(
    rows: Sequence[Sequence[RunRecord]], against: TrainConfig | None
) -> Sequence[RunRecord]:
    """Returns the row with a config's runs, an empty one if there is none.

    A custom network has a row for each version of its source; the present one counts.
    Of the rows that are left, such as on other numbers of devices, the latest counts.
    """
    if against is None:
        return ()
    source = network_sha256(against)
    found = [
        runs
        for runs in rows
        if runs[0].config
        == dataclasses.replace(
            against.for_dataset(runs[0].dataset), seed=runs[0].config.seed
        )
    ]

    def rank(runs: Sequence[RunRecord]) -> tuple[bool, str]:
        dates = [run.environment.date for run in runs]
        return runs[0].source_sha256 == source, max(dates)

    return max(found, key=rank, default=())


def difference_columns(
    runs: Sequence[RunRecord], others: Sequence[RunRecord]
) -> dict[str, float]:
    """Returns the columns of a row in `comparison_frame`, none if `others` is empty.

    They are NaN without common seeds, and for the row `others` itself.
    """
    if not others:
        return {}
    first, second = (
        {run.config.seed: run.test_accuracy for run in row} for row in (runs, others)
    )
    interval = Interval(math.nan, math.nan, math.nan)
    seeds = first.keys() & second.keys()
    if seeds and runs is not others:
        interval = paired_difference(
            [first[seed] for seed in seeds], [second[seed] for seed in seeds]
        )
    return dict(zip(_COLUMNS, interval, strict=True))


def format_differences(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Formats the columns of the differences in a `comparison_frame` for printing."""
    if "difference" not in frame:
        return {}
    rows = frame[list(_COLUMNS)].itertuples(index=False)
    return {"difference": [f"{Interval(*row):+.4f}" for row in rows]}
