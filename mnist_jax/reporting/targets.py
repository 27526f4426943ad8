"""Time to target: training seconds until the validation accuracy reaches a target."""

import math
import statistics
from collections.abc import Iterable, Sequence

import pandas as pd

from mnist_jax.config import TrainConfig, as_text
from mnist_jax.errors import InputError
from mnist_jax.records.schema import RunRecord

NOTE = (
    "s to a target: training seconds until the end of the first epoch with at least "
    "that validation accuracy; median over the seeds that reached it, with their "
    "number unless all did"
)
_SECONDS, _SEEDS = "seconds_to_", "seeds_to_"


def check_targets(
    targets: Iterable[float | str], configs: Iterable[TrainConfig] = ()
) -> list[float]:
    """Returns the target accuracies as numbers, each of them once.

    Args:
        targets: as given by the user.
        configs: what is trained to reach them.

    Raises:
        InputError: a target is not between 0 and 1, or a config has no validation set
            from the training set.

    >>> check_targets(["0.98", "0.99", "0.980"]), check_targets("0.98,0.99")
    ([0.98, 0.99], [0.98, 0.99])
    """
    checked = []
    if isinstance(targets, str):
        targets = targets.split(",")
    for target in targets if isinstance(targets, Iterable) else [targets]:
        try:
            number = float(target)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 < number < 1:  # also for NaN
            raise InputError(
                "--targets must be accuracies above 0 and below 1, such as 0.98,0.99; "
                f"got {target!r}"
            )
        checked.append(number)
    if checked:
        for config in configs:
            config.require_validation("targets", as_text(tuple(checked)))
    return list(dict.fromkeys(checked))


def seconds_to_target(record: RunRecord, target: float) -> float | None:
    """Returns the training seconds until a run's validation accuracy was at a target.

    It is None if no epoch reached the target, and for a run without a validation set
    from the training set. A seed trained together with others counts its share.
    """
    if record.config.validation != "fraction":
        return None
    seconds = 0.0
    for epoch in record.epochs:
        seconds += epoch.train_seconds
        if epoch.val_accuracy is not None and epoch.val_accuracy >= target:
            return seconds
    return None


def target_columns(
    runs: Sequence[RunRecord], targets: Iterable[float]
) -> dict[str, float]:
    """Returns the columns of a row's targets in `comparison_frame`."""
    columns: dict[str, float] = {}
    for target in targets:
        seconds = [seconds_to_target(run, target) for run in runs]
        reached = [value for value in seconds if value is not None]
        columns[f"{_SECONDS}{target}"] = statistics.median(reached or [math.nan])
        columns[f"{_SEEDS}{target}"] = len(reached)
    return columns


def format_targets(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Formats the columns of the targets in a `comparison_frame` for printing."""
    columns = {}
    for name in frame.filter(regex=f"^{_SECONDS}"):
        target = name.removeprefix(_SECONDS)
        rows = frame[[name, f"{_SEEDS}{target}", "seeds"]].itertuples(index=False)
        columns[f"s to {target}"] = [_format_reached(*row) for row in rows]
    return columns


def _format_reached(seconds: float, reached: int, seeds: int) -> str:
    """Formats the seconds to a target, with the number of seeds unless all reached it.

    >>> _format_reached(6.2, 2, 3), _format_reached(math.nan, 0, 3)
    ('6.20 (2 of 3)', '-')
    """
    if not reached:
        return "-"
    return f"{seconds:.2f}" + (f" ({reached} of {seeds})" if reached < seeds else "")
