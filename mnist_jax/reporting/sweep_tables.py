"""A sweep's table, its best settings as a flag file, and its part of the report.

The folder of a sweep has Optuna's journal of its trials, and their run directories.
"""

import itertools
import math
import shlex
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mnist_jax.config import as_text, changed_fields
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import RunRecord
from mnist_jax.reporting.pictures import Picture
from mnist_jax.reporting.statistics import format_spread
from mnist_jax.reporting.tables import (
    group_by_table,
    markdown_table,
    table_notes,
)
from mnist_jax.training.run_dir import RUNS, find_runs, read_data_dir, read_record

JOURNAL = "journal.log"  # of Optuna, in the folder of a sweep
BEST, TABLE, CSV = "best.cfg", "sweep.md", "sweep.csv"
SELECTION_NOTE = (
    "sorted and selected by validation accuracy, the mean over seeds; test accuracy is "
    "measured once, at the end of each finished run, and neither the search nor the "
    "order of this table reads it"
)


def open_storage(out: Path) -> Any:
    """Returns Optuna's storage of the trials in the folder of a sweep."""
    import optuna  # an optional dependency
    from optuna.storages import journal

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    backend = journal.JournalFileBackend(str((out / JOURNAL).absolute()))
    return journal.JournalStorage(backend)


def load_study(out: Path) -> Any:
    """Returns Optuna's study of the sweep in a folder, None if it has no sweep."""
    import optuna

    if not (out / JOURNAL).exists():
        return None
    return optuna.load_study(study_name=None, storage=open_storage(out))


def as_settings(params: Mapping[str, Any]) -> dict[str, str]:
    """Returns the parameters of a trial as on the command line.

    >>> as_settings({"model": "mlp", "learning_rate": 0.00123456})
    {'model': 'mlp', 'learning_rate': '0.001235'}
    """
    return {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in params.items()
    }


def validation_accuracy(record: RunRecord) -> float:
    """Returns the validation accuracy of the parameters that a run kept."""
    accuracy = record.epochs[(record.best_epoch or len(record.epochs)) - 1].val_accuracy
    assert accuracy is not None  # a sweep needs a validation set
    return accuracy


def read_trials(out: Path) -> pd.DataFrame:
    """Returns the trials in a folder that have started, the best complete one first.

    The columns up to `state` are the varied flags. Accuracies are means over seeds with
    their sample standard deviation, NaN for one seed; of a trial that is not complete,
    the validation accuracy is the last one measured. Seconds are of training and
    evaluation, the mean over seeds.
    """
    rows, study = [], load_study(out)
    for trial in study.get_trials(deepcopy=False) if study else ():
        if (folder := trial.user_attrs.get("folder")) is None:
            continue
        complete, values = trial.state.name == "COMPLETE", trial.intermediate_values
        paths = (out / RUNS / folder).glob("*") if complete else ()
        runs = [run for path in paths if (run := read_record(path))]
        accuracies = [*map(validation_accuracy, runs)] or [*values.values()][-1:]
        validation = pd.Series(accuracies, dtype=float)
        test = pd.Series([run.test_accuracy for run in runs], dtype=float)
        epochs = [epoch for run in runs for epoch in run.epochs]
        seconds = sum(epoch.train_seconds + epoch.eval_seconds for epoch in epochs)
        row = {
            **as_settings(trial.params),
            "state": trial.state.name.lower(),
            "seeds": len(runs),
            "val_accuracy": validation.mean(),
            "val_accuracy_std": validation.std(),
            "test_accuracy": test.mean(),
            "test_accuracy_std": test.std(),
            "epochs_trained": max([e.epoch for e in epochs] or values, default=0),
            "seconds": seconds / len(runs) if runs else math.nan,
            "folder": folder,
        }
        rows.append(row)
    if not rows:
        return pd.DataFrame()
    # The names of Optuna's states are in the order of the table.
    by, ascending = ["state", "val_accuracy"], [True, False]
    trials = pd.DataFrame(rows).sort_values(by, ascending=ascending)
    return trials.drop_duplicates("folder", ignore_index=True)  # drawn twice


def format_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """Formats trials for printing."""
    table = trials.loc[:, :"state"].copy()
    for name, column in (("validation", "val"), ("test", "test")):
        columns = [f"{column}_accuracy", f"{column}_accuracy_std", "seeds"]
        table[f"{name} accuracy"] = [
            format_spread(*cells)
            if cells[-1]
            else f"{cells[0]:.4f}".replace("nan", "-")
            for cells in trials[columns].itertuples(index=False)
        ]
    table["epochs trained"] = trials["epochs_trained"]
    table["s"] = trials["seconds"].map("{:.2f}".format).replace("nan", "-")
    return table


def write_trials(out: Path, trials: pd.DataFrame) -> str:
    """Writes a sweep's table as Markdown and CSV, and the flag file of the best.

    Returns the table and the command that trains the best settings again, if any.
    """
    found = find_runs(out)
    machines = map(table_notes, group_by_table(found.values()))
    notes = [SELECTION_NOTE, *itertools.chain(*machines)]
    text = markdown_table(format_trials(trials), notes)
    write_file(out / TABLE, text + "\n")
    write_file(out / CSV, trials.to_csv(index=False))
    best = trials.iloc[0]
    if not best["seeds"]:
        return text
    runs = {p: run for p, run in found.items() if p.parent.name == best["folder"]}
    run_dir = min(runs, key=lambda path: runs[path].config.seed)
    config, dataset = runs[run_dir].config, runs[run_dir].dataset
    words = [f"--flagfile={out / BEST}", f"--seed={config.seed}"]
    words += [f"--seeds={len(runs)}", f"--run_dir={out / 'best'}"]
    command = f"python -m experiments.train {shlex.join(words)}"
    flags = {"model": config.model, "dataset": config.dataset}
    flags |= {"data_dir": folder} if (folder := read_data_dir(run_dir)) else {}
    flags |= changed_fields(config, dataset)
    lines = [
        f"# Validation accuracy {best['val_accuracy']:.4f} on {dataset}, selected from "
        f"{len(trials)} trials.",
        f"# {command}",
        *(f"--{name}={as_text(value)}" for name, value in flags.items()),
    ]
    write_file(out / BEST, "\n".join(lines) + "\n")
    return f"{text}\n\nbest: {command}"


def read_sweep(out: Path) -> dict[str, Any] | None:
    """Returns the report's content for the sweep in a folder; None if it has none."""
    if (trials := read_trials(out)).empty:
        return None
    counts = trials["state"].value_counts(sort=False)
    named = ", ".join(f"{count} {state}" for state, count in counts.items())
    return {
        "summary": f"{len(trials)} trials: {named}; {SELECTION_NOTE}.",
        "table": format_trials(trials),
        "pictures": _pictures(trials, load_study(out)),
        "best": (out / BEST).read_text() if (out / BEST).exists() else "",
    }


def _pictures(trials: pd.DataFrame, study: Any) -> list[Picture]:
    """Returns Optuna's plots of the complete trials."""
    flags = trials[trials["state"] == "complete"].loc[:, :"state"]
    names = [name for name in flags if flags[name].nunique() > 1]
    return [
        Picture(
            name=f"sweep-{kind}",
            heading=f"validation accuracy by {', '.join(names)}",
            caption=f"A {mark} for each complete trial, the mean over its seeds.",
            figure=_draw(study, names, f"plot_{kind}"),
        )
        for kind, mark in (("slice", "point"), ("parallel_coordinate", "line"))
        if names
    ]


def _draw(study: Any, names: list[str], plot: str) -> Figure:
    """Draws one of Optuna's plots of validation accuracy by flags."""
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    with warnings.catch_warnings(action="ignore"):  # Optuna calls them experimental
        getattr(plots, plot)(study, params=names, target_name="validation accuracy")
    figure = pyplot.gcf()
    pyplot.close(figure)
    figure.set_size_inches(3.5 * max(2, len(names)), 3.5)
    return figure
