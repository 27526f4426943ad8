"""Comparison tables of recorded runs."""

import dataclasses
import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from mnist_jax.config import TrainConfig, as_text, changed_fields
from mnist_jax.errors import InputError
from mnist_jax.models.custom import network_sha256
from mnist_jax.records.schema import RunRecord
from mnist_jax.reporting.statistics import Interval, format_spread, paired_difference

WIDTH = 100  # characters of a printed table
_DIFFERENCES = ("difference", "difference_low", "difference_high")
_MEDIANS = (  # fields of `RunRecord`
    *("first_epoch_seconds", "steady_epoch_seconds", "train_images_per_second"),
    *("step_milliseconds", "evaluate_images_per_second", "total_seconds"),
)


def check_targets(
    targets: Iterable[float | str], configs: Iterable[TrainConfig] = ()
) -> list[float]:
    """Returns target accuracies as numbers, each of them once.

    >>> check_targets(["0.98", "0.99", "0.980"])
    [0.98, 0.99]
    """
    numbers = list(dict.fromkeys(map(float, targets)))
    if not all(0 < number < 1 for number in numbers):
        raise InputError(
            "--targets must be accuracies above 0 and below 1, such as 0.98,0.99; got "
            f"{as_text(tuple(numbers))}"
        )
    for config in configs if numbers else ():
        config.require_validation("targets", as_text(tuple(numbers)))
    return numbers


def seconds_to_target(record: RunRecord, target: float) -> float:
    """Returns the training seconds until a run's validation accuracy was at a target.

    NaN if no epoch reached it, and for a run without a validation set from the training
    set. A seed trained together with others counts its share.
    """
    seconds = 0.0
    for epoch in record.epochs if record.config.validation == "fraction" else ():
        seconds += epoch.train_seconds
        if epoch.val_accuracy is not None and epoch.val_accuracy >= target:
            return seconds
    return math.nan


def _format_fields(fields: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={as_text(value)}" for name, value in fields.items())


def format_settings(record: RunRecord) -> str:
    """Formats the settings that differ from the defaults, without the seed."""
    changes = changed_fields(record.config, record.dataset)
    if record.float32_convolutions:
        changes["precision"] = "bfloat16(convolutions:float32)"
    if record.source_sha256 is not None:
        changes["source"] = record.source_sha256[:8]  # other code is another network
    return _format_fields(changes)


def _row_key(record: RunRecord) -> tuple[str, str, int]:
    """Returns what the runs of a row share: they differ in the seed only."""
    return record.config.model, format_settings(record), record.devices


def group_by_table(records: Iterable[Any]) -> list[list[Any]]:
    """Groups records by their `table_key`, such as machine and versions."""
    groups: dict[tuple[str | int, ...], list[Any]] = {}
    for record in records:
        groups.setdefault(record.table_key(), []).append(record)
    return list(groups.values())


def group_by_row(records: Iterable[RunRecord]) -> list[list[RunRecord]]:
    """Groups records of one table by model and settings, best mean accuracy first.

    If a seed was recorded twice with the same settings, the later run counts.
    """
    groups: dict[tuple[str, str, int], dict[int, RunRecord]] = {}
    for record in records:
        groups.setdefault(_row_key(record), {})[record.config.seed] = record
    rows = [list(seeds.values()) for seeds in groups.values()]
    return sorted(
        rows, key=lambda runs: -statistics.fmean(run.test_accuracy for run in runs)
    )


def _find_row(
    rows: Sequence[Sequence[RunRecord]], against: TrainConfig
) -> Sequence[RunRecord]:
    """Returns the row with a config's runs, an empty one if there is none.

    It is that of the present source of a custom network, and of rows that differ in the
    number of devices the latest.
    """
    source = network_sha256(against)

    def fits(run: RunRecord) -> bool:
        config = against.for_dataset(run.dataset)
        config = dataclasses.replace(config, seed=run.config.seed)
        return (run.config, run.source_sha256) == (config, source)

    return max(
        (runs for runs in rows if fits(runs[0])),
        key=lambda runs: max(run.environment.date for run in runs),
        default=(),
    )


def paired_accuracies(
    runs: Iterable[RunRecord], others: Iterable[RunRecord]
) -> Interval:
    """Returns the difference of mean accuracies, paired by seed; NaN without pairs."""
    first, second = (
        {run.config.seed: run.test_accuracy for run in row} for row in (runs, others)
    )
    seeds = first.keys() & second.keys()
    if not seeds:
        return Interval(math.nan, math.nan, math.nan)
    return paired_difference(
        [first[seed] for seed in seeds], [second[seed] for seed in seeds]
    )


def comparison_frame(
    records: Iterable[RunRecord],
    targets: Sequence[float] = (),
    against: TrainConfig | None = None,
) -> pd.DataFrame:
    """Returns one row per model and settings, best mean test accuracy first.

    Accuracy and loss are means over seeds, times and the number of epochs that ran are
    medians; a seed trained together with others counts its share of the time. The
    standard deviation of one seed is NaN. Compile times are of cached programs only if
    `compile_cached`, and `seeds_together` is the largest of its runs.

    Args:
        records: run records of one table (see `group_by_table`).
        targets: validation accuracies, as returned by `check_targets`. 0.98 adds
            `seconds_to_0.98`, the median training seconds of the seeds that reached it,
            NaN if none did, and `seeds_to_0.98`, their number.
        against: config of a row. Adds `difference`, `difference_low` and
            `difference_high` from its test accuracy, paired by seed.
    """
    rows, groups = [], group_by_row(records)
    reference = _find_row(groups, against) if against else ()
    for runs in groups:
        model, settings, devices = _row_key(runs[0])
        table = pd.DataFrame(map(vars, runs))
        cached = table["compile_cached"].all()
        compiled = table if cached else table[~table["compile_cached"]]
        row: dict[str, Any] = {
            "model": model,
            "settings": settings,
            "dataset": runs[0].dataset,
            "parameters": runs[0].parameters,
            "devices": devices,
            "seeds": len(runs),
            "seeds_together": table["seeds_together"].max(),
            "test_accuracy": table["test_accuracy"].mean(),
            "test_accuracy_std": table["test_accuracy"].std(),
            "tta_accuracy": table["tta_accuracy"].astype(float).mean(),
            "test_loss": table["test_loss"].mean(),
            "epochs": table["epochs"].map(len).median(),
            "compile_seconds": compiled["compile_seconds"].median(),
            "compile_cached": cached,
            **table[[*_MEDIANS]].astype(float).median(),
        }
        for target in targets:
            seconds = pd.Series([seconds_to_target(run, target) for run in runs])
            row[f"seconds_to_{target}"] = seconds.median()
            row[f"seeds_to_{target}"] = seconds.count()
        if reference:
            difference = paired_accuracies(runs, () if runs is reference else reference)
            row |= zip(_DIFFERENCES, difference, strict=True)
        rows.append(row)
    return pd.DataFrame(rows)


def _words(frame: pd.DataFrame) -> list[list[str]]:
    """Returns the settings of each row of a `comparison_frame`, such as `epochs=2`."""
    columns = frame[["settings", "devices", "seeds_together"]]
    return [
        [*settings.split(), f"devices={devices}", f"seeds_together={together}"]
        for settings, devices, together in columns.itertuples(index=False)
    ]


def _shared(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the words that all rows share; none of a single row."""
    first, *others = rows
    return [word for word in first if others and all(word in row for row in others)]


def row_labels(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Returns model and settings of each row, without what all rows share.

    Files and sources of custom networks and numbers of devices are left out too if rows
    differ without them.
    """
    rows = _words(frame)
    shared, short, long = _shared(rows), [], []
    for model, words in zip(frame["model"], rows, strict=True):
        own = [word for word in words if word not in shared]
        long.append((model, " ".join(own)))
        hidden = ("source=", "devices=", "seeds_together=")
        own = [word for word in own if not word.startswith(hidden)]
        short.append((model.rpartition(":")[2], " ".join(own)))
    return short if len({*short}) == len(short) else long


def row_names(frame: pd.DataFrame) -> list[str]:
    """Names each row of a `comparison_frame` by its `row_labels`."""
    return [" ".join(filter(None, label)) for label in row_labels(frame)]


def format_comparison(frame: pd.DataFrame) -> pd.DataFrame:
    """Formats a `comparison_frame` for printing, without columns that are constant."""

    def column(name: str, form: str) -> pd.Series:
        return frame[name].map(form.format).replace("nan", "-")

    accuracies = frame[["test_accuracy", "test_accuracy_std", "seeds"]]
    table = pd.DataFrame(row_labels(frame), columns=["model", "settings"])
    table["test accuracy"] = [
        format_spread(*row) for row in accuracies.itertuples(index=False)
    ]
    table["with TTA"] = column("tta_accuracy", "{:.4f}")
    if "difference" in frame:
        rows = frame[[*_DIFFERENCES]].to_numpy()
        table["difference"] = [f"{Interval(*row):+.4f}" for row in rows]
    for name in frame.filter(like="seconds_to_"):
        target = name.removeprefix("seconds_to_")
        reached = zip(frame[f"seeds_to_{target}"], frame["seeds"], strict=True)
        some = [f" ({n} of {seeds})" if 0 < n < seeds else "" for n, seeds in reached]
        table[f"s to {target}"] = column(name, "{:.2f}") + some
    cached = frame["compile_cached"].map({True: " (cached)", False: ""})
    table["steady s/epoch"] = column("steady_epoch_seconds", "{:.2f}")
    table["train images/s"] = column("train_images_per_second", "{:,.0f}")
    table["parameters"] = column("parameters", "{:,}")
    table["compile s"] = column("compile_seconds", "{:.2f}") + cached
    table["total s"] = column("total_seconds", "{:.1f}")
    table["test loss"] = column("test_loss", "{:.4f}")
    table["first epoch s"] = column("first_epoch_seconds", "{:.2f}")
    table["epochs"] = column("epochs", "{:g}")
    table["step ms"] = column("step_milliseconds", "{:.2f}")
    table["evaluate images/s"] = column("evaluate_images_per_second", "{:,.0f}")
    table["devices"] = frame["devices"]
    table["seeds together"] = frame["seeds_together"]
    defaults = {"settings": "", "seeds together": 1, "with TTA": "-"}
    unneeded = {name for name, value in defaults.items() if all(table[name] == value)}
    if len(table) > 1:  # then they are in `column_notes`
        counts = ("devices", "seeds together")
        unneeded |= {name for name in counts if table[name].nunique() == 1}
    return table.drop(columns=list(unneeded))


def main_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the first columns of a formatted comparison: those that fit `WIDTH`."""
    short = {"steady s/epoch": "s/epoch", "train images/s": "images/s"}
    main = table.loc[:, :"total s"].rename(columns=short)
    while markdown_table(main).index("\n") > WIDTH and len(main.columns) > 3:
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


def bullets(notes: Iterable[str]) -> str:
    """Formats notes as a Markdown list."""
    return "\n".join(f"- {note}" for note in notes)


def markdown_table(frame: pd.DataFrame, notes: Iterable[str] = ()) -> str:
    """Formats a frame as a Markdown table above a list of notes.

    It is padded to be readable as plain text, with columns of numbers at the right.
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
    table = "\n".join(f"|{'|'.join(row)}|" for row in zip(*columns, strict=True))
    return f"{table}\n\n{bullets(notes)}" if notes else table


def title(record: RunRecord) -> str:
    """Returns a table's title: dataset, device, cores; marks data that is not MNIST."""
    machine = record.environment
    data = record.dataset.upper()
    if record.dataset_note:
        data = f"{data}, NOT MNIST"
    return f"{data} on {machine.device} ({machine.cores} cores)"


def provenance(records: Iterable[Any]) -> list[str]:
    """Returns the device, versions, commits, dates and load of records."""
    environments = [record.environment for record in records]
    first, dates = environments[0], sorted(e.date for e in environments)
    names = ("python", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = [f"{name} {getattr(first, name)}" for name in names]
    versions += first.numerics.split()
    commits = dict.fromkeys(
        (e.commit or "not a checkout")[:14] + " with uncommitted changes" * e.dirty
        for e in environments
    )
    loads = [e.load for e in environments]
    return [
        f"device: {first.device} ({first.platform}), {first.cores} cores",
        f"versions: {', '.join(versions)}; XLA_FLAGS: {first.xla_flags or 'none'}",
        f"commit: {', '.join(commits)}",
        f"date: {dates[0]} to {dates[-1]}; load average at start "
        f"{min(loads)} to {max(loads)}",
    ]


def table_notes(records: Sequence[RunRecord]) -> list[str]:
    """Returns the notes below a table of runs: data, provenance and measurement."""
    first = records[0]
    return [
        *([first.dataset_note] if first.dataset_note else []),
        f"data: {first.dataset}, sha256 {first.checksum}",
        *provenance(records),
        "accuracy: mean ± standard deviation over seeds; times: medians over seeds; "
        "a steady epoch is any after the first; epoch times exclude compiling",
    ]


def column_notes(frame: pd.DataFrame, against: TrainConfig | None) -> list[str]:
    """Returns the notes on what all rows share, and on the columns that were asked for.

    Arguments are the result of `comparison_frame`, and its `against`.
    """
    notes = []
    shared = [word for word in _shared(_words(frame)) if word != "seeds_together=1"]
    if shared:
        notes.append(f"all rows: {' '.join(shared)}")
    if len(frame.filter(like="seconds_to_").columns):
        notes.append(
            "s to a target: training seconds until the end of the first epoch with at "
            "least that validation accuracy; median over the seeds that reached it, "
            "with their number unless all did"
        )
    if against and "difference" in frame:
        settings = _format_fields(changed_fields(against, frame["dataset"][0]))
        name = f"{against.model} {settings}".rstrip()
        notes.append(
            f"difference: mean test accuracy less that of {name}, over the seeds of "
            "both, with its 95 % interval (Student's t, paired by seed)"
        )
    return notes


def format_markdown(
    records: Iterable[RunRecord],
    targets: Sequence[float] = (),
    against: TrainConfig | None = None,
    all_columns: bool = True,
) -> str:
    """Formats the title, table and notes of each group of `group_by_table`."""
    texts = []
    for group in group_by_table(records):
        frame = comparison_frame(group, targets, against)
        table = format_comparison(frame)
        notes = column_notes(frame, against) + table_notes(group)
        text = markdown_table(table if all_columns else main_columns(table), notes)
        texts.append(f"**{title(group[0])}**\n\n{text}")
    return "\n\n".join(texts)
