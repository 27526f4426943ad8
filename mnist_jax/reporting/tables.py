"""Comparison tables of recorded runs."""

import dataclasses
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from mnist_jax.config import TrainConfig, as_text, changed_fields
from mnist_jax.errors import InputError
from mnist_jax.models.custom import network_sha256
from mnist_jax.records.schema import RunRecord
from mnist_jax.reporting.statistics import Interval, format_spread, mean_interval

WIDTH = 100  # characters of a printed table
_DIFFERENCES = ("difference", "difference_low", "difference_high")
_NUMBER = re.compile(r"[+-]?\d[\d,]*\.?\d*(e[+-]?\d+)?( |%|$)")
# Fields of records in a comparison: over seeds, its title as text, and its format.
_COLUMNS = {
    "tta_accuracy": ("mean", "with TTA", "{:.4f}"),
    "steady_epoch_seconds": ("median", "steady s/epoch", "{:.2f}"),
    "train_images_per_second": ("median", "train images/s", "{:,.0f}"),
    "parameters": ("max", "parameters", "{:,}"),
    "compile_seconds": ("median", "compile s", "{:.2f}"),
    "total_seconds": ("median", "total s", "{:.1f}"),
    "test_loss": ("mean", "test loss", "{:.4f}"),
    "first_epoch_seconds": ("median", "first epoch s", "{:.2f}"),
    "epochs": ("median", "epochs", "{:g}"),
    "step_milliseconds": ("median", "step ms", "{:.2f}"),
    "evaluate_images_per_second": ("median", "evaluate images/s", "{:,.0f}"),
    "devices": ("max", "devices", "{}"),
    "seeds_together": ("max", "seeds together", "{}"),
}


def check_targets(
    targets: Sequence[float], configs: Iterable[TrainConfig] = ()
) -> None:
    """Checks target accuracies, and that runs of the configs can reach them."""
    if not all(0 < target < 1 for target in targets):
        raise InputError(
            "--targets must be accuracies above 0 and below 1, such as 0.98,0.99; got "
            f"{as_text(tuple(targets))}"
        )
    for config in configs if targets else ():
        config.require_validation("targets", as_text(tuple(targets)))


def history_frame(record: RunRecord) -> pd.DataFrame:
    """Returns one row per epoch of a run, with the fields of `EpochRecord`."""
    return pd.DataFrame(record.epochs)


def budget_frame(record: RunRecord) -> pd.DataFrame:
    """Returns `seconds` of training so far and `accuracy` after each epoch of a run.

    The accuracy is of a validation set from the training set, NaN without one. Seconds
    exclude compiling and evaluation; a seed trained with others counts its share.
    """
    history = history_frame(record)
    accuracy = history["val_accuracy"].astype(float)
    if record.config.validation != "fraction":
        accuracy[:] = math.nan
    seconds = history["train_seconds"].cumsum()
    return pd.DataFrame({"seconds": seconds, "accuracy": accuracy})


def seconds_to_target(record: RunRecord, target: float) -> float:
    """Returns the training seconds until a validation accuracy; NaN if not reached."""
    budget = budget_frame(record)
    return budget["seconds"][budget["accuracy"] >= target].min()


def changed_settings(record: RunRecord) -> list[str]:
    """Returns the settings besides the defaults and the seed, such as `epochs=2`."""
    changes = changed_fields(record.config, record.dataset)
    if record.float32_convolutions:
        changes["precision"] = "bfloat16(convolutions:float32)"
    if record.source_sha256 is not None:
        changes["source"] = record.source_sha256[:8]  # other code is another network
    return [f"{name}={as_text(value)}" for name, value in changes.items()]


def group_by_table(records: Iterable[Any]) -> list[list[Any]]:
    """Groups records by their `table_key`, such as machine and versions."""
    groups: dict[tuple[str | int, ...], list[Any]] = {}
    for record in records:
        groups.setdefault(record.table_key(), []).append(record)
    return list(groups.values())


def latest_table(records: Sequence[Any]) -> list[Any]:
    """Returns the records that have the `table_key` of the last one."""
    key = records[-1].table_key()
    return [record for record in records if record.table_key() == key]


def group_by_row(records: Iterable[RunRecord]) -> list[list[RunRecord]]:
    """Groups records of one table by model and settings, best mean accuracy first.

    If a seed was recorded twice with the same settings, the later run counts.
    """
    groups: dict[tuple[Any, ...], dict[int, RunRecord]] = {}
    for record in records:
        row = record.config.model, *changed_settings(record), record.devices
        groups.setdefault(row, {})[record.config.seed] = record
    rows = [list(seeds.values()) for seeds in groups.values()]
    rows.sort(key=lambda runs: -statistics.fmean(run.test_accuracy for run in runs))
    return rows


def _runs_of(config: TrainConfig, records: Iterable[RunRecord]) -> list[RunRecord]:
    """Returns the latest run of each seed of a config and its present source."""
    source, runs = network_sha256(config), {}
    for run in records:
        seed = run.config.seed
        wanted = dataclasses.replace(config.for_dataset(run.dataset), seed=seed)
        if (run.config, run.source_sha256) == (wanted, source):
            runs[seed] = run
    return list(runs.values())


def paired_accuracies(
    runs: Iterable[RunRecord], others: Iterable[RunRecord]
) -> Interval:
    """Returns the difference of mean accuracies, paired by seed; NaN without pairs."""
    first, second = (
        pd.Series({run.config.seed: run.test_accuracy for run in row}, dtype=float)
        for row in (runs, others)
    )
    return mean_interval((first - second).dropna())


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
        targets: validation accuracies. 0.98 adds `seconds_to_0.98`, the median training
            seconds of the seeds that reached it, NaN if none did, and `seeds_to_0.98`,
            their number.
        against: config of a row. Adds `difference`, `difference_low` and
            `difference_high` from its test accuracy, paired by seed.
    """
    records, rows, settings = list(records), [], []
    reference = _runs_of(against, records) if against else []
    for runs in group_by_row(records):
        first, table = runs[0], pd.DataFrame(map(vars, runs))
        table["epochs"] = table["epochs"].map(len)
        cached = table["compile_cached"]
        if not cached.all():
            table.loc[cached, "compile_seconds"] = math.nan
        row: dict[str, Any] = {
            "model": first.config.model,
            "settings": " ".join(changed_settings(first)),
            "dataset": first.dataset,
            "seeds": len(runs),
            "test_accuracy": table["test_accuracy"].mean(),
            "test_accuracy_std": table["test_accuracy"].std(),
            "compile_cached": cached.all(),
        }
        for name, (how, _, _) in _COLUMNS.items():
            row[name] = pd.to_numeric(table[name]).agg(how)
        for target in targets:
            seconds = pd.Series([seconds_to_target(run, target) for run in runs])
            row[f"seconds_to_{target}"] = seconds.median()
            row[f"seeds_to_{target}"] = seconds.count()
        if reference:
            others = [run for run in reference if run not in runs]
            row |= zip(_DIFFERENCES, paired_accuracies(runs, others), strict=True)
        rows.append(row)
        counts = [f"{name}={row[name]}" for name in ("devices", "seeds_together")]
        settings.append(changed_settings(first) + counts)
    frame = pd.DataFrame(rows)
    frame.attrs["settings"] = settings
    if reference:
        words = [reference[0].config.model, *changed_settings(reference[0])]
        frame.attrs["against"] = " ".join(words)
    return frame


def _split_settings(frame: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Returns the settings that all rows share, and the other ones of each row.

    A single row shares none.
    """
    rows: list[list[str]] = frame.attrs["settings"]
    shared = [s for s in rows[0] if len(rows) > 1 and all(s in row for row in rows)]
    return shared, [[s for s in row if s not in shared] for row in rows]


def row_labels(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns model and settings of each row as text, without what all rows share.

    Files and sources of custom networks and numbers of devices are left out too if rows
    differ without them.
    """
    rows, hidden = _split_settings(frame)[1], ("source=", "devices=", "seeds_together=")
    labels = pd.DataFrame({"model": frame["model"], "settings": map(" ".join, rows)})
    names = frame["model"].str.rpartition(":")[2]
    few = [" ".join(s for s in row if not s.startswith(hidden)) for row in rows]
    short = pd.DataFrame({"model": names, "settings": few})
    return labels if short.duplicated().any() else short


def row_names(frame: pd.DataFrame) -> list[str]:
    """Names each row of a `comparison_frame` by its `row_labels`."""
    labels = row_labels(frame)
    return (labels["model"] + " " + labels["settings"]).str.strip().tolist()


def format_comparison(frame: pd.DataFrame) -> pd.DataFrame:
    """Formats a `comparison_frame` for printing, without columns that are constant."""
    table = row_labels(frame)
    accuracies = frame[["test_accuracy", "test_accuracy_std", "seeds"]]
    table["test accuracy"] = [
        format_spread(*row) for row in accuracies.itertuples(index=False)
    ]
    if "difference" in frame:
        rows = frame[[*_DIFFERENCES]].to_numpy()
        table["difference"] = [f"{Interval(*row):+.4f}" for row in rows]
    for name in frame.filter(like="seconds_to_"):
        target = name.removeprefix("seconds_to_")
        reached = zip(frame[f"seeds_to_{target}"], frame["seeds"], strict=True)
        some = [f" ({n} of {seeds})" if 0 < n < seeds else "" for n, seeds in reached]
        table[f"s to {target}"] = frame[name].map("{:.2f}".format) + some
    for name, (_, label, form) in _COLUMNS.items():
        table[label] = frame[name].map(form.format)
    table["compile s"] += frame["compile_cached"].map({True: " (cached)", False: ""})
    table = table.replace("nan", "-")
    defaults = {"settings": "", "seeds together": "1", "with TTA": "-"}
    unneeded = [name for name, value in defaults.items() if all(table[name] == value)]
    if len(table) > 1:  # then they are in `column_notes`
        counts = ("devices", "seeds together")
        unneeded += [name for name in counts if table[name].nunique() == 1]
    return table.drop(columns=unneeded)


def main_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Returns the first columns of a formatted comparison: those that fit `WIDTH`."""
    short = {"steady s/epoch": "s/epoch", "train images/s": "images/s"}
    main = table.loc[:, :"total s"].rename(columns=short)
    while markdown_table(main).index("\n") > WIDTH and len(main.columns) > 3:
        main = main.iloc[:, :-1]
    return main


def markdown_table(frame: pd.DataFrame, notes: Iterable[str] = ()) -> str:
    """Formats a frame as a Markdown table above a list of notes.

    It is padded to be readable as plain text, with columns of numbers at the right.
    """
    columns = []
    for name, values in frame.astype(str).items():
        filled = [value for value in values if value not in ("", "-")]
        right = bool(filled) and all(map(_NUMBER.match, filled))
        align, width = ">" if right else "<", max(map(len, [str(name), *values]))
        rule = "-" * (width + 1) + (":" if right else "-")
        header, *cells = (f" {c:{align}{width}} " for c in [str(name), *values])
        columns.append([header, rule, *cells])
    table = "\n".join(f"|{'|'.join(row)}|" for row in zip(*columns, strict=True))
    lines = "\n".join(f"- {note}" for note in notes)
    return f"{table}\n\n{lines}" if notes else table


def title(record: RunRecord) -> str:
    """Returns a table's title: dataset, device, cores; marks data that is not MNIST."""
    machine, marked = record.environment, ", NOT MNIST" if record.dataset_note else ""
    data = f"{record.dataset.upper()}{marked}"
    return f"{data} on {machine.device} ({machine.cores} cores)"


def provenance(records: Iterable[Any]) -> list[str]:
    """Returns the device, versions, commits, dates and load of records."""
    environments = [record.environment for record in records]
    first, dates = environments[0], sorted(e.date for e in environments)
    names = ("python", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = [f"{name} {getattr(first, name)}" for name in names]
    versions += first.numerics.split()
    commits = dict.fromkeys(
        (e.commit or "not a checkout")[:14]
        + " with uncommitted changes" * bool(e.dirty)
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


def column_notes(frame: pd.DataFrame) -> list[str]:
    """Returns the notes on a `comparison_frame`: what rows share, columns asked for."""
    notes = []
    shared, _ = _split_settings(frame)
    if shared := [setting for setting in shared if setting != "seeds_together=1"]:
        notes.append(f"all rows: {' '.join(shared)}")
    if len(frame.filter(like="seconds_to_").columns):
        notes.append(
            "s to a target: training seconds until the end of the first epoch with at "
            "least that validation accuracy; median over the seeds that reached it, "
            "with their number unless all did"
        )
    if against := frame.attrs.get("against"):
        notes.append(
            f"difference: mean test accuracy less that of {against}, over the seeds of "
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
        notes = column_notes(frame) + table_notes(group)
        text = markdown_table(table if all_columns else main_columns(table), notes)
        texts.append(f"**{title(group[0])}**\n\n{text}")
    return "\n\n".join(texts)
