"""Records -> comparison tables."""

import dataclasses
import statistics
from collections.abc import Iterable, Sequence

import pandas as pd

from mnist_jax.config import TrainConfig, as_text
from mnist_jax.records.environment import Environment
from mnist_jax.records.schema import RunRecord


def _settings(config: TrainConfig) -> str:
    """Returns what a run was given beyond its model's defaults, apart from the seed."""
    default = TrainConfig(model=config.model)
    changes = {
        field.name: value
        for field in dataclasses.fields(config)
        if field.name not in ("model", "seed", "dataset")
        and (value := getattr(config, field.name)) != getattr(default, field.name)
    }
    return " ".join(f"{name}={as_text(value)}" for name, value in changes.items())


def median_and_range(values: Sequence[float], digits: int = 0) -> str:
    """Writes the median and, in brackets, the range; "-" if there are no values.

    >>> median_and_range([1000.0, 3000.0, 2000.0])
    '2,000 [1,000, 3,000]'
    """
    if not values:
        return "-"
    median, low, high = (
        f"{value:,.{digits}f}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{median} [{low}, {high}]"


def mean_and_spread(values: Sequence[float]) -> str:
    """Writes mean ± standard deviation (n), or the value alone for one run.

    >>> mean_and_spread([0.97, 0.98])
    '0.9750 ± 0.0071 (n=2)'
    """
    series = pd.Series(values)
    spread = f" ± {series.std():.4f}" if len(series) > 1 else ""
    return f"{series.mean():.4f}{spread} (n={len(series)})"


def row_key(record: RunRecord) -> tuple[str, str, str, int]:
    """Returns what runs of one row have in common: all but the seed."""
    config = record.config
    return config.model, _settings(config), record.impl, record.devices


def row_names(rows: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Names rows: the model, with the settings that are not the model's defaults.

    Rows that are alike in these also have their devices and layers named.
    """
    keys = [row_key(row[0]) for row in rows]
    names = [" ".join(filter(None, key[:2])) for key in keys]
    return [
        f"{name} ({impl} layers, {devices} devices)" if names.count(name) > 1 else name
        for name, (_, _, impl, devices) in zip(names, keys, strict=True)
    ]


def group_by_row(records: Iterable[RunRecord]) -> list[list[RunRecord]]:
    """Groups records of one table by model and settings, best mean accuracy first.

    Of two runs with the same settings and seed the later one counts.
    """
    groups: dict[tuple[str, str, str, int], dict[int, RunRecord]] = {}
    for record in records:
        groups.setdefault(row_key(record), {})[record.config.seed] = record
    rows = [list(seeds.values()) for seeds in groups.values()]
    return sorted(
        rows, key=lambda runs: -statistics.fmean(run.test_accuracy for run in runs)
    )


def _compile_seconds(records: Sequence[RunRecord]) -> str:
    """Formats the median seconds of compiling, of cached programs only if need be."""
    cold = [r.compile_seconds for r in records if not r.compile_cached]
    if cold:
        return f"{statistics.median(cold):.2f}"
    cached = [r.compile_seconds for r in records]
    return f"{statistics.median(cached):.2f} (cached)"


def comparison_frame(records: Iterable[RunRecord]) -> pd.DataFrame:
    """Returns one row per model and settings, best mean test accuracy first.

    Args:
        records: run records of one table (see `format_markdown`); of two runs with the
            same settings and seed the later one counts.

    Returns:
        The columns below; `settings` only if any run had some, `seeds together` only if
        any were. Accuracies are means over seeds, seconds are medians over seeds, of
        seeds trained together each one's share.
    """
    rows = []
    for runs in group_by_row(records):
        model, settings, _, devices = row_key(runs[0])
        together = sorted({run.seeds_together for run in runs})
        steady = [s for run in runs if (s := run.steady_epoch_seconds) is not None]

        def median(name: str, digits: int, runs: list[RunRecord] = runs) -> str:
            values = [getattr(run, name) for run in runs]
            return f"{statistics.median(values):,.{digits}f}"

        rows.append(
            {
                "model": model,
                "settings": settings,
                "parameters": f"{runs[0].parameters:,}",
                "devices": devices,
                "seeds together": ", ".join(map(str, together)),
                "test accuracy": mean_and_spread([run.test_accuracy for run in runs]),
                "test loss": f"{statistics.fmean(run.test_loss for run in runs):.4f}",
                "compile s": _compile_seconds(runs),
                "first epoch s": median("first_epoch_seconds", 2),
                "steady s/epoch": f"{statistics.median(steady):.2f}" if steady else "-",
                "train images/s": median("train_images_per_second", 0),
                "step ms": median("step_milliseconds", 2),
                "evaluate images/s": median("evaluate_images_per_second", 0),
                "total s": median("total_seconds", 1),
            }
        )
    frame = pd.DataFrame(rows)
    same = {"settings": "", "seeds together": "1"}  # what then needs no column
    return frame.drop(columns=[name for name in same if all(frame[name] == same[name])])


def history_frame(record: RunRecord) -> pd.DataFrame:
    """Returns one row per epoch of a run: losses, accuracies, seconds."""
    return pd.DataFrame(record.epochs)


def budget_frame(record: RunRecord) -> pd.DataFrame:
    """Returns a run's `seconds` of training and its `accuracy` after each epoch.

    Seconds leave compiling and evaluation out. The accuracy is that of the validation
    set; where there was none, a single row has the test accuracy at the end.
    """
    history = history_frame(record)
    seconds = history["train_seconds"].cumsum()
    if history["val_accuracy"].isna().any():
        values = {"seconds": seconds.iloc[-1:], "accuracy": record.test_accuracy}
        return pd.DataFrame(values)
    return pd.DataFrame({"seconds": seconds, "accuracy": history["val_accuracy"]})


def markdown_table(frame: pd.DataFrame) -> str:
    """Writes a frame as a Markdown table, padded to read as plain text too."""
    cells = [list(map(str, frame.columns)), *frame.astype(str).to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def group_by_table(records: Iterable[RunRecord]) -> list[list[RunRecord]]:
    """Groups records by data set, machine and versions, in order of appearance."""
    groups: dict[tuple[str | int, ...], list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record.table_key(), []).append(record)
    return list(groups.values())


def title(record: RunRecord) -> str:
    """Names the data set and the machine; a stand-in for MNIST loudly."""
    machine = record.environment
    data = record.dataset.upper()
    if record.dataset_note:
        data = f"{data}, NOT MNIST"
    return f"{data} on {machine.device} ({machine.cores} cores)"


def format_versions(environment: Environment) -> str:
    """Returns the versions of Python and of the packages that compute."""
    names = ("python", "jax", "jaxlib", "flax", "optax", "numpy")
    return ", ".join(f"{name} {getattr(environment, name)}" for name in names)


def format_commit(environment: Environment) -> str:
    """Returns the commit and whether the checkout was changed."""
    changed = " with uncommitted changes" if environment.dirty else ""
    return f"{(environment.commit or 'not a checkout')[:14]}{changed}"


def provenance_items(records: Sequence[RunRecord]) -> list[str]:
    """Returns what the numbers of a table rest on, a sentence for each thing."""
    first, machine = records[0], records[0].environment
    environments = [record.environment for record in records]
    commits = dict.fromkeys(map(format_commit, environments))
    flags = dict.fromkeys(e.xla_flags or "none" for e in environments)
    dates = sorted(e.date for e in environments)
    loads = [e.load for e in environments]
    return [
        f"data: {first.dataset}, sha256 {first.checksum}",
        f"device: {machine.device} ({machine.platform}), {machine.cores} cores",
        f"versions: {format_versions(machine)}; XLA_FLAGS: {', '.join(flags)}",
        f"commit: {', '.join(commits)}",
        f"date: {dates[0]} to {dates[-1]}; load average at start "
        f"{min(loads)} to {max(loads)}",
        "accuracy: mean ± standard deviation over seeds; times: medians over seeds; "
        "a steady epoch is any after the first; compiling is in none of them",
    ]


def provenance(records: Sequence[RunRecord]) -> str:
    """Writes what the numbers of a table rest on, below it."""
    note = records[0].dataset_note
    items = [f"**{note}**"] if note else []
    return "\n".join(f"- {item}" for item in [*items, *provenance_items(records)])


def format_markdown(records: Iterable[RunRecord]) -> str:
    """Formats a title, table and provenance for each data set and machine."""
    return "\n\n".join(
        f"**{title(group[0])}**\n\n{markdown_table(comparison_frame(group))}\n\n"
        f"{provenance(group)}"
        for group in group_by_table(records)
    )
