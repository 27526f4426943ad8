"""Comparison tables of recorded runs."""

import math
import re
import statistics
from collections.abc import Iterable, Sequence

import pandas as pd

from mnist_jax.config import TrainConfig, as_text, changed_fields
from mnist_jax.records.environment import Environment
from mnist_jax.records.schema import RunRecord
from mnist_jax.reporting.differences import NOTE as DIFFERENCES_NOTE
from mnist_jax.reporting.differences import (
    difference_columns,
    find_row,
    format_differences,
)
from mnist_jax.reporting.targets import NOTE as TARGETS_NOTE
from mnist_jax.reporting.targets import format_targets, target_columns

WIDTH = 100  # characters of a printed table


def format_settings(record: RunRecord) -> str:
    """Formats the settings that differ from the defaults, without the seed."""
    changes = changed_fields(record.config, record.dataset)
    if record.float32_convolutions:
        changes["precision"] = "bfloat16(convolutions:float32)"
    if record.source_sha256 is not None:
        changes["source"] = record.source_sha256[:8]  # other code is another network
    return " ".join(f"{name}={as_text(value)}" for name, value in changes.items())


def median_and_range(values: Sequence[float], digits: int = 0) -> str:
    """Formats the median with the range in brackets; "-" if there are no values.

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
    """Formats the mean ± standard deviation (n), or just the mean if n is 1.

    >>> mean_and_spread([0.97, 0.98])
    '0.9750 ± 0.0071 (n=2)'
    """
    series = pd.Series(values)
    return format_mean(series.mean(), series.std(), len(series))


def format_mean(mean: float, std: float, n: int) -> str:
    """Formats a mean as `mean_and_spread` does."""
    spread = f" ± {std:.4f}" if n > 1 else ""
    return f"{mean:.4f}{spread} (n={n})"


def row_key(record: RunRecord) -> tuple[str, str, str, int]:
    """Returns the key shared by the runs of one row, which differ in the seed."""
    return record.config.model, format_settings(record), record.impl, record.devices


def row_names(rows: Sequence[Sequence[RunRecord]]) -> list[str]:
    """Names each row by its model and the settings that differ from the defaults.

    What all rows share is left out. Names that would not be unique include the
    implementation and number of devices.
    """
    keys = [row_key(row[0]) for row in rows]
    short = _shorten([key[0] for key in keys], [key[1] for key in keys])
    names = [" ".join(filter(None, row)) for row in short]
    return [
        f"{name} (impl={impl}, devices={devices})" if names.count(name) > 1 else name
        for name, (_, _, impl, devices) in zip(names, keys, strict=True)
    ]


def _shared(settings: Iterable[str]) -> list[str]:
    """Returns the settings that all rows share; none of a single row."""
    first, *others = [text.split() for text in settings]
    return [word for word in first if others and all(word in row for row in others)]


def _shorten(models: Sequence[str], settings: Sequence[str]) -> list[tuple[str, str]]:
    """Returns model and settings of each row, without what all rows share.

    Files and sources of custom networks are left out too if rows differ without them.

    >>> _shorten(["a.py:Net", "mlp"], ["epochs=2 source=0f", "epochs=2 hidden=8"])
    [('Net', ''), ('mlp', 'hidden=8')]
    """
    shared = _shared(settings)
    own = [[word for word in text.split() if word not in shared] for text in settings]
    long = [(m, " ".join(words)) for m, words in zip(models, own, strict=True)]
    short = [
        (m.rpartition(":")[2], " ".join(w for w in words if w[:7] != "source="))
        for m, words in zip(models, own, strict=True)
    ]
    return short if len({*short}) == len({*long}) else long


def shared_settings(frame: pd.DataFrame) -> list[str]:
    """Returns a line on what all rows of a `comparison_frame` share, if anything."""
    texts = [
        f"{settings} devices={devices} seeds_together={together}"
        for settings, devices, together in zip(
            frame["settings"], frame["devices"], frame["seeds_together"], strict=True
        )
    ]
    shared = " ".join(word for word in _shared(texts) if word != "seeds_together=1")
    return [f"all rows: {shared}"] if shared else []


def group_by_row(records: Iterable[RunRecord]) -> list[list[RunRecord]]:
    """Groups records of one table by model and settings, best mean accuracy first.

    If a seed was recorded twice with the same settings, the later run counts.
    """
    groups: dict[tuple[str, str, str, int], dict[int, RunRecord]] = {}
    for record in records:
        groups.setdefault(row_key(record), {})[record.config.seed] = record
    rows = [list(seeds.values()) for seeds in groups.values()]
    return sorted(
        rows, key=lambda runs: -statistics.fmean(run.test_accuracy for run in runs)
    )


def comparison_frame(
    records: Iterable[RunRecord],
    targets: Sequence[float] = (),
    against: TrainConfig | None = None,
) -> pd.DataFrame:
    """Returns one row per model and settings, best mean test accuracy first.

    Args:
        records: run records of one table (see `group_by_table`). If a seed was recorded
            twice with the same settings, the later run counts.
        targets: validation accuracies, as returned by `check_targets`.
        against: config of a row, from whose test accuracy the differences are taken.

    Returns:
        The columns below. `seeds` is their number, `test_accuracy_std` is NaN for one
        seed, and the rest are named as in `RunRecord`. Accuracy and loss are means over
        seeds, times and the number of epochs that ran are medians over seeds; a seed
        trained together with others counts its share of the time. Compile times are of
        cached programs only if `compile_cached`, and `seeds_together` is the largest of
        its runs. Each target such as 0.98 adds two columns: `seconds_to_0.98`, the
        median training seconds of the seeds that reached it, NaN if none did (see
        `seconds_to_target`), and `seeds_to_0.98`, their number. `against` adds
        `difference`, `difference_low` and `difference_high`, paired by seed.
    """
    rows, groups = [], group_by_row(records)
    reference = find_row(groups, against)
    for runs in groups:
        model, settings, _, devices = row_key(runs[0])
        accuracies = [run.test_accuracy for run in runs]
        cold = [run for run in runs if not run.compile_cached]
        steady = [s for run in runs if (s := run.steady_epoch_seconds) is not None]

        def median(name: str, runs: list[RunRecord] = runs) -> float:
            return statistics.median(getattr(run, name) for run in runs)

        rows.append(
            {
                "model": model,
                "settings": settings,
                "dataset": runs[0].dataset,
                "parameters": runs[0].parameters,
                "devices": devices,
                "seeds": len(runs),
                "seeds_together": max(run.seeds_together for run in runs),
                "test_accuracy": statistics.fmean(accuracies),
                "test_accuracy_std": pd.Series(accuracies).std(),
                "tta_accuracy": pd.Series(
                    [run.tta_accuracy for run in runs], dtype=float
                ).mean(),
                "test_loss": statistics.fmean(run.test_loss for run in runs),
                "compile_seconds": median("compile_seconds", cold or runs),
                "compile_cached": not cold,
                "first_epoch_seconds": median("first_epoch_seconds"),
                "steady_epoch_seconds": statistics.median(steady or [math.nan]),
                "epochs": statistics.median(len(run.epochs) for run in runs),
                "train_images_per_second": median("train_images_per_second"),
                "step_milliseconds": median("step_milliseconds"),
                "evaluate_images_per_second": median("evaluate_images_per_second"),
                "total_seconds": median("total_seconds"),
                **target_columns(runs, targets),
                **difference_columns(runs, reference),
            }
        )
    return pd.DataFrame(rows)


def format_comparison(frame: pd.DataFrame) -> pd.DataFrame:
    """Formats a `comparison_frame` for printing, without columns that are constant."""

    def column(name: str, form: str) -> pd.Series:
        return frame[name].map(form.format).replace("nan", "-")

    accuracies = frame[["test_accuracy", "test_accuracy_std", "seeds"]]
    cached = frame["compile_cached"].map({True: " (cached)", False: ""})
    models, settings = zip(
        *_shorten(list(frame["model"]), list(frame["settings"])), strict=True
    )
    table = pd.DataFrame(
        {
            "model": models,
            "settings": settings,
            "test accuracy": [
                format_mean(*row) for row in accuracies.itertuples(index=False)
            ],
            "with TTA": column("tta_accuracy", "{:.4f}"),
            **format_differences(frame),
            **format_targets(frame),
            "steady s/epoch": column("steady_epoch_seconds", "{:.2f}"),
            "train images/s": column("train_images_per_second", "{:,.0f}"),
            "parameters": column("parameters", "{:,}"),
            "compile s": column("compile_seconds", "{:.2f}") + cached,
            "total s": column("total_seconds", "{:.1f}"),
            "test loss": column("test_loss", "{:.4f}"),
            "first epoch s": column("first_epoch_seconds", "{:.2f}"),
            "epochs": column("epochs", "{:g}"),
            "step ms": column("step_milliseconds", "{:.2f}"),
            "evaluate images/s": column("evaluate_images_per_second", "{:,.0f}"),
            "devices": frame["devices"],
            "seeds together": frame["seeds_together"],
        }
    )
    defaults = {"settings": "", "seeds together": 1, "with TTA": "-"}
    unneeded = {name for name, value in defaults.items() if all(table[name] == value)}
    if len(table) > 1:  # then they are in the line of `shared_settings`
        counts = ("devices", "seeds together")
        unneeded |= {name for name in counts if table[name].nunique() == 1}
    return table.drop(columns=list(unneeded))


def main_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the first columns of a formatted comparison: those that fit `WIDTH`."""
    short = {"steady s/epoch": "s/epoch", "train images/s": "images/s"}
    main = table.loc[:, :"total s"].rename(columns=short)
    key = [name for name in ("model", "settings") if name in main]
    if main.duplicated(key).any() and "devices" in table:
        main.insert(len(key), "devices", table["devices"])
    while (
        len(markdown_table(main).partition("\n")[0]) > WIDTH and len(main.columns) > 3
    ):
        main = main.iloc[:, :-1]
    return main


def history_frame(record: RunRecord) -> pd.DataFrame:
    """Returns one row per epoch of a run, with the fields of `EpochRecord`."""
    return pd.DataFrame(record.epochs)


def sort_value(text: str) -> float | str:
    """Returns the sort key of a cell: its leading number, or else its text.

    >>> sort_value("93,322"), sort_value("0.9935 ± 0.0002 (n=3)"), sort_value("3x3")
    (93322.0, 0.9935, '3x3')
    >>> sort_value("1e-3"), sort_value("+0.0098 [+0.0065, +0.0131]")
    (0.001, 0.0098)
    """
    number = re.match(r"[+-]?\d[\d,]*\.?\d*(e[+-]?\d+)?(?=[ %]|$)", text)
    return float(number[0].replace(",", "")) if number else text


def markdown_table(frame: pd.DataFrame) -> str:
    """Formats a frame as a Markdown table, padded to be readable as plain text.

    Columns of numbers are aligned at the right.
    """
    columns = []
    for name, values in zip(frame.columns, frame.astype(str).to_numpy().T, strict=True):
        cells = [str(name), *values]
        filled = [sort_value(value) for value in values if value not in ("", "-")]
        right = bool(filled) and all(isinstance(key, float) for key in filled)
        width = max(map(len, cells))
        rule = "-" * (width + 1) + (":" if right else "-")
        padded = [f" {c:>{width}} " if right else f" {c:<{width}} " for c in cells]
        columns.append([padded[0], rule, *padded[1:]])
    return "\n".join(f"|{'|'.join(row)}|" for row in zip(*columns, strict=True))


def group_by_table(records: Iterable[RunRecord]) -> list[list[RunRecord]]:
    """Groups records by dataset, machine, versions and flags that change numbers."""
    groups: dict[tuple[str | int, ...], list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record.table_key(), []).append(record)
    return list(groups.values())


def title(record: RunRecord) -> str:
    """Returns a table's title: dataset, device, cores; marks data that is not MNIST."""
    machine = record.environment
    data = record.dataset.upper()
    if record.dataset_note:
        data = f"{data}, NOT MNIST"
    return f"{data} on {machine.device} ({machine.cores} cores)"


def format_versions(environment: Environment) -> str:
    """Formats the versions of Python and of numerical packages, and JAX's settings."""
    names = ("python", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = [f"{name} {getattr(environment, name)}" for name in names]
    return ", ".join([*versions, *environment.numerics.split()])


def format_commit(environment: Environment) -> str:
    """Formats the commit, and whether the checkout had uncommitted changes."""
    changed = " with uncommitted changes" if environment.dirty else ""
    return f"{(environment.commit or 'not a checkout')[:14]}{changed}"


def environment_items(environments: Sequence[Environment]) -> list[str]:
    """Returns the device, versions, commits, dates and load of measurements."""
    first, dates = environments[0], sorted(e.date for e in environments)
    loads = [environment.load for environment in environments]
    return [
        f"device: {first.device} ({first.platform}), {first.cores} cores",
        f"versions: {format_versions(first)}; XLA_FLAGS: {first.xla_flags or 'none'}",
        f"commit: {', '.join(dict.fromkeys(map(format_commit, environments)))}",
        f"date: {dates[0]} to {dates[-1]}; load average at start "
        f"{min(loads)} to {max(loads)}",
    ]


def provenance_items(
    records: Sequence[RunRecord],
    targets: Sequence[float] = (),
    against: TrainConfig | None = None,
) -> list[str]:
    """Returns the provenance of a table: data, device, versions, commit, dates."""
    rows = group_by_row(records)
    reference = find_row(rows, against)
    names = [
        name
        for name, runs in zip(row_names(rows), rows, strict=True)
        if runs is reference
    ]
    return [
        f"data: {records[0].dataset}, sha256 {records[0].checksum}",
        *environment_items([record.environment for record in records]),
        "accuracy: mean ± standard deviation over seeds; times: medians over seeds; "
        "a steady epoch is any after the first; epoch times exclude compiling",
        *([TARGETS_NOTE] if targets else []),
        *(DIFFERENCES_NOTE.format(name) for name in names),
    ]


def provenance(
    records: Sequence[RunRecord],
    targets: Sequence[float] = (),
    against: TrainConfig | None = None,
) -> str:
    """Formats the provenance of a table as a Markdown list."""
    note = records[0].dataset_note
    items = [f"**{note}**"] if note else []
    items += provenance_items(records, targets, against)
    return "\n".join(f"- {item}" for item in items)


def format_markdown(
    records: Iterable[RunRecord],
    targets: Sequence[float] = (),
    against: TrainConfig | None = None,
    all_columns: bool = True,
) -> str:
    """Formats the title, table and provenance of each group of `group_by_table`."""
    texts = []
    for group in group_by_table(records):
        frame = comparison_frame(group, targets, against)
        table = format_comparison(frame)
        table = markdown_table(table if all_columns else main_columns(table))
        shared = "".join(f"- {line}\n" for line in shared_settings(frame))
        items = shared + provenance(group, targets, against)
        texts.append(f"**{title(group[0])}**\n\n{table}\n\n{items}")
    return "\n\n".join(texts)
