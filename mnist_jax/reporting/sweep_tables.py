"""A sweep's table, its best settings as a flag file, and its part of the report.

The folder of a sweep has Optuna's journal of its trials, and their run directories.
"""

import itertools
import shlex
import statistics
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from mnist_jax.config import as_text, changed_fields
from mnist_jax.records.environment import check_packages
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import RunRecord
from mnist_jax.reporting.pictures import Picture
from mnist_jax.reporting.statistics import format_spread, spread
from mnist_jax.reporting.tables import (
    group_by_table,
    markdown_table,
    sort_value,
    table_notes,
)
from mnist_jax.training.results import RUNS
from mnist_jax.training.run_dir import read_data_dir, read_record

JOURNAL = "journal.log"  # of Optuna, in the folder of a sweep
BEST, TABLE, CSV = "best.cfg", "sweep.md", "sweep.csv"
SELECTION_NOTE = (
    "sorted and selected by validation accuracy, the mean over seeds; test accuracy is "
    "measured once, at the end of each finished run, and neither the search nor the "
    "order of this table reads it"
)
# In the order of the table. Optuna's names of the states are those in capitals.
FINISHED, STARTED, PRUNED, FAILED = STATES = ("finished", "started", "pruned", "failed")
_STATES = {"COMPLETE": FINISHED, "PRUNED": PRUNED, "FAIL": FAILED}


def import_optuna() -> ModuleType:
    """Returns Optuna, silenced; raises InputError if it is not installed."""
    check_packages("a sweep", ["optuna"], "sweep")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_storage(out: Path) -> Any:
    """Returns Optuna's storage of the trials in the folder of a sweep."""
    journal = import_optuna().storages.journal
    path = str((out / JOURNAL).absolute())
    lock = journal.JournalFileOpenLock(path)  # works on network file systems too
    return journal.JournalStorage(journal.JournalFileBackend(path, lock))


def open_studies(storage: Any) -> list[Any]:
    """Returns Optuna's study of each command that trained into the folder."""
    optuna = import_optuna()
    names = optuna.get_all_study_names(storage)
    return [optuna.load_study(study_name=name, storage=storage) for name in names]


class Row(NamedTuple):
    """A trial in the table."""

    settings: dict[str, str]  # the model and the varied flags, as on the command line
    flags: dict[str, str]  # the other flags of its command
    folder: Path
    seeds: list[int]
    state: str
    records: list[RunRecord]  # of a finished trial, one per seed
    validation: list[float]  # accuracies: one per record, or the last mean over seeds
    epochs: int


def validation_accuracy(record: RunRecord) -> float:
    """Returns the validation accuracy of the parameters that a run kept."""
    accuracy = record.epochs[(record.best_epoch or len(record.epochs)) - 1].val_accuracy
    assert accuracy is not None  # a sweep needs a validation set
    return accuracy


def read_rows(out: Path) -> list[Row]:
    """Returns the trials in a folder, the best finished one first."""
    rows: dict[str, Row] = {}
    for study in open_studies(open_storage(out)) if (out / JOURNAL).exists() else []:
        for trial in study.get_trials(deepcopy=False):
            if "folder" in trial.user_attrs:  # it has started
                row = _read_row(out, study.user_attrs, trial)
                rows[row.folder.name] = row
    return sorted(
        rows.values(),
        key=lambda row: (
            STATES.index(row.state),
            -row.epochs if row.state != FINISHED else 0,
            -statistics.fmean(row.validation or [0]),
        ),
    )


def _read_row(out: Path, command: dict[str, Any], trial: Any) -> Row:
    folder, seeds = out / RUNS / trial.user_attrs["folder"], command["seeds"]
    values = trial.intermediate_values
    epochs, validation = max(values, default=0), [*values.values()][-1:]
    state, records = _STATES.get(trial.state.name, STARTED), []
    if state == FINISHED:
        folders = {seed: folder / f"seed{seed}" for seed in seeds}
        records = [run for path in folders.values() if (run := read_record(path))]
        if len(records) < len(seeds):  # its folder was deleted
            state, records = STARTED, []
    if state == FINISHED:
        validation = list(map(validation_accuracy, records))
        epochs = max(len(record.epochs) for record in records)
    settings, flags = trial.user_attrs["settings"], command["flags"]
    return Row(settings, flags, folder, seeds, state, records, validation, epochs)


def sweep_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Returns one row per trial, in order.

    The varied flags come first, as texts, with those in which several commands differ.
    Accuracies are means over seeds with their sample standard deviation, NaN for one
    seed; of a trial that has not finished, the validation accuracy is the last one
    measured. Seconds are of training and evaluation, the mean over seeds.
    """
    varied = dict.fromkeys(name for row in rows for name in row.settings)
    given = dict.fromkeys(name for row in rows for name in row.flags)
    names = [n for n in given if len({row.flags.get(n) for row in rows}) > 1]
    names += [name for name in varied if name not in names]
    if len({row.settings["model"] for row in rows}) == 1 < len(names):
        names.remove("model")
    table = []
    for row in rows:
        both, epochs = row.flags | row.settings, [r.epochs for r in row.records]
        validation = pd.Series(row.validation, dtype=float)
        test = pd.Series([r.test_accuracy for r in row.records], dtype=float)
        seconds = [sum(e.train_seconds + e.eval_seconds for e in run) for run in epochs]
        table.append(
            {
                **{name: both.get(name, "-") for name in names},
                "state": row.state,
                "seeds": len(row.seeds),
                "val_accuracy": validation.mean(),
                "val_accuracy_std": validation.std(),
                "test_accuracy": test.mean(),
                "test_accuracy_std": test.std(),
                "epochs": row.epochs,
                "seconds": statistics.fmean(seconds) if seconds else float("nan"),
                "folder": row.folder.name,
            }
        )
    return pd.DataFrame(table)


def flag_names(frame: pd.DataFrame) -> list[str]:
    """Returns the columns of a `sweep_frame` that are flags."""
    return list(frame.columns[: frame.columns.get_loc("state")])


def format_sweep(frame: pd.DataFrame) -> pd.DataFrame:
    """Formats a `sweep_frame` for printing."""

    def accuracies(kind: str) -> list[str]:
        columns = [f"{kind}_accuracy", f"{kind}_accuracy_std", "seeds", "state"]
        return [
            format_spread(mean, std, seeds)
            if state == FINISHED
            else "-"
            if pd.isna(mean)
            else f"{mean:.4f}"
            for mean, std, seeds, state in frame[columns].itertuples(index=False)
        ]

    table = frame[[*flag_names(frame), "state"]].copy()
    if all(frame["state"] == FINISHED):
        del table["state"]
    table["validation accuracy"] = accuracies("val")
    table["test accuracy"] = accuracies("test")
    table["epochs"] = frame["epochs"]
    table["s"] = frame["seconds"].map("{:.2f}".format).replace("nan", "-")
    return table


def flag_lines(row: Row) -> list[str]:
    """Returns the flags with which `experiments.train` trains a finished trial."""
    config, dataset = row.records[0].config, row.records[0].dataset
    flags = {"model": config.model}
    if config.dataset != "auto":
        flags["dataset"] = config.dataset
    if data_dir := read_data_dir(row.folder / f"seed{config.seed}"):
        flags["data_dir"] = data_dir
    flags |= changed_fields(config, dataset)
    return [f"--{name}={as_text(value)}" for name, value in flags.items()]


def best_command(out: Path, row: Row) -> str:
    """Returns the command that trains the best settings again."""
    words = [f"--flagfile={out / BEST}", f"--seed={row.seeds[0]}"]
    words += [f"--seeds={len(row.seeds)}", f"--run_dir={out / 'best'}"]
    return f"python -m experiments.train {shlex.join(words)}"


def write_sweep(out: Path, rows: Sequence[Row]) -> str:
    """Writes a sweep's table as Markdown and CSV, and the flag file of the best.

    Returns:
        The Markdown. Without a finished trial there is no flag file.
    """
    frame = sweep_frame(rows)
    machines = group_by_table(record for row in rows for record in row.records)
    notes = [SELECTION_NOTE, *itertools.chain(*map(table_notes, machines))]
    text = markdown_table(format_sweep(frame), notes)
    write_file(out / TABLE, text + "\n")
    write_file(out / CSV, frame.to_csv(index=False))
    if rows[0].state == FINISHED:
        accuracy = spread(rows[0].validation)
        lines = [
            f"# Validation accuracy {accuracy} on {rows[0].records[0].dataset}, "
            f"selected from {len(rows)} trials.",
            f"# {best_command(out, rows[0])}",
            *flag_lines(rows[0]),
        ]
        write_file(out / BEST, "\n".join(lines) + "\n")
    return text


class SweepSection(NamedTuple):
    """The report's content for a sweep."""

    summary: str
    columns: list[str]
    rows: list[list[tuple[str, float | str]]]  # cells: text and sort key
    pictures: list[Picture]
    command: str  # trains the best settings; empty if no trial has finished
    flags: str  # of the best settings, a line each


def read_sweep(out: Path) -> SweepSection | None:
    """Returns the report's content for the sweep in a folder; None if it has none."""
    if not (rows := read_rows(out)):
        return None
    table = format_sweep(sweep_frame(rows))
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    best = rows[0] if rows[0].state == FINISHED else None
    return SweepSection(
        f"{len(rows)} trials: {counts}; {SELECTION_NOTE}.",
        list(table.columns),
        [[(cell, sort_value(cell)) for cell in map(str, row)] for row in table.values],
        sweep_pictures(out),
        best_command(out, best) if best else "",
        "\n".join(flag_lines(best)) if best else "",
    )


def sweep_pictures(out: Path) -> list[Picture]:
    """Returns Optuna's plots of the finished trials, of each command in a folder."""
    pictures = []
    for number, study in enumerate(open_studies(open_storage(out)), start=1):
        finished = [t.params for t in study.get_trials() if t.state.name == "COMPLETE"]
        varied = dict.fromkeys(name for params in finished for name in params)
        names = [n for n in varied if len({params[n] for params in finished}) > 1]
        pictures += [
            Picture(
                name=f"sweep-{number}-{kind}",
                heading=f"validation accuracy by {', '.join(names)}",
                caption=f"A {mark} for each finished trial, the mean over its seeds.",
                draw=partial(_draw, study, names, f"plot_{kind}"),
            )
            for kind, mark in (("slice", "point"), ("parallel_coordinate", "line"))
            if names
        ]
    return pictures


def _draw(study: Any, names: list[str], plot: str) -> Figure:
    """Draws one of Optuna's plots of validation accuracy by flags."""
    from matplotlib import pyplot

    size = 3.5 * max(2, len(names)), 3.5
    with matplotlib.rc_context({"figure.figsize": size}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls these plots experimental
        draw = getattr(import_optuna().visualization.matplotlib, plot)
        draw(study, params=names, target_name="validation accuracy")
        figure = pyplot.gcf()
        pyplot.close(figure)
    return figure
