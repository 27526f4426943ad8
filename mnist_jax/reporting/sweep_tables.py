"""A sweep's table, its best settings as a flag file, and its part of the report.

The folder of a sweep has Optuna's journal of its trials, and their run directories.
"""

import itertools
import shlex
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
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
from mnist_jax.training.run_dir import RUNS, read_data_dir, read_record, read_runs

JOURNAL = "journal.log"  # of Optuna, in the folder of a sweep
BEST, TABLE, CSV = "best.cfg", "sweep.md", "sweep.csv"
SELECTION_NOTE = (
    "sorted and selected by validation accuracy, the mean over seeds; test accuracy is "
    "measured once, at the end of each finished run, and neither the search nor the "
    "order of this table reads it"
)
# Optuna's states of a trial, in the order of the table.
STATES = {
    "COMPLETE": "finished",
    "RUNNING": "started",
    "WAITING": "started",  # and stopped
    "PRUNED": "pruned",
    "FAIL": "failed",
}


def open_storage(out: Path) -> Any:
    """Returns Optuna's storage of the trials in the folder of a sweep."""
    import optuna  # an optional dependency
    from optuna.storages import journal

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    path = str((out / JOURNAL).absolute())
    lock = journal.JournalFileOpenLock(path)  # works on network file systems too
    return journal.JournalStorage(journal.JournalFileBackend(path, lock))


def open_studies(out: Path) -> list[Any]:
    """Returns Optuna's study of each command that trained into a folder."""
    if not (out / JOURNAL).exists():
        return []
    import optuna

    storage = open_storage(out)
    names = optuna.get_all_study_names(storage)
    return [optuna.load_study(study_name=name, storage=storage) for name in names]


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
    """Returns the trials in a folder that have started, the best finished one first.

    The flags that differ between trials come first, or else the model. Accuracies are
    means over seeds with their sample standard deviation, NaN for one seed; of a trial
    that has not finished, the validation accuracy is the last one measured. Seconds are
    of training and evaluation, the mean over seeds.
    """
    settings, results = {}, {}  # by folder, which commands may share
    for study in open_studies(out):
        for trial in study.get_trials(deepcopy=False):
            if (folder := trial.user_attrs.get("folder")) is None:
                continue
            finished, values = trial.state.name == "COMPLETE", trial.intermediate_values
            records = read_seeds(out / RUNS / folder) if finished else []
            accuracies = [*map(validation_accuracy, records)] or [*values.values()][-1:]
            validation = pd.Series(accuracies, dtype=float)
            test = pd.Series([record.test_accuracy for record in records], dtype=float)
            runs = [record.epochs for record in records]
            seconds = [
                sum(e.train_seconds + e.eval_seconds for e in run) for run in runs
            ]
            settings[folder] = study.user_attrs["flags"] | as_settings(trial.params)
            results[folder] = {
                "state": STATES[trial.state.name],
                "seeds": len(records),
                "val_accuracy": validation.mean(),
                "val_accuracy_std": validation.std(),
                "test_accuracy": test.mean(),
                "test_accuracy_std": test.std(),
                "epochs_trained": max(map(len, runs), default=max(values, default=0)),
                "seconds": pd.Series(seconds, dtype=float).mean(),
                "folder": folder,
            }
    if not results:
        return pd.DataFrame()
    flags, order = pd.DataFrame(list(settings.values())).fillna("-"), [*STATES.values()]
    varied = [name for name in flags if flags[name].nunique() > 1] or ["model"]
    trials = pd.concat([flags[varied], pd.DataFrame(list(results.values()))], axis=1)
    return trials.sort_values(
        ["state", "val_accuracy"],
        key=lambda column: (
            column.map(order.index) if column.name == "state" else -column
        ),
        ignore_index=True,
    )


def read_seeds(folder: Path) -> list[RunRecord]:
    """Returns the records of a trial's finished runs, by seed."""
    paths = {int(path.name[4:]): path for path in folder.glob("seed*")}
    return [run for _, path in sorted(paths.items()) if (run := read_record(path))]


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
    machines = map(table_notes, group_by_table(read_runs(out)))
    notes = [SELECTION_NOTE, *itertools.chain(*machines)]
    text = markdown_table(format_trials(trials), notes)
    write_file(out / TABLE, text + "\n")
    write_file(out / CSV, trials.to_csv(index=False))
    best = trials.iloc[0]
    if records := read_seeds(out / RUNS / best["folder"]) if best["seeds"] else []:
        config, dataset = records[0].config, records[0].dataset
        words = [f"--flagfile={out / BEST}", f"--seed={config.seed}"]
        words += [f"--seeds={len(records)}", f"--run_dir={out / 'best'}"]
        command = f"python -m experiments.train {shlex.join(words)}"
        flags = {"model": config.model, "dataset": config.dataset}
        run_dir = out / RUNS / best["folder"] / f"seed{config.seed}"
        if data_dir := read_data_dir(run_dir):
            flags["data_dir"] = data_dir
        flags |= changed_fields(config, dataset)
        lines = [
            f"# Validation accuracy {best['val_accuracy']:.4f} on {dataset}, selected "
            f"from {len(trials)} trials.",
            f"# {command}",
            *(f"--{name}={as_text(value)}" for name, value in flags.items()),
        ]
        write_file(out / BEST, "\n".join(lines) + "\n")
        text += f"\n\nbest: {command}"
    return text


def read_sweep(out: Path) -> dict[str, Any] | None:
    """Returns the report's content for the sweep in a folder; None if it has none."""
    if (trials := read_trials(out)).empty:
        return None
    counts = trials["state"].value_counts(sort=False)
    named = ", ".join(f"{count} {state}" for state, count in counts.items())
    return {
        "summary": f"{len(trials)} trials: {named}; {SELECTION_NOTE}.",
        "table": format_trials(trials),
        "pictures": sweep_pictures(out),
        "best": (out / BEST).read_text() if (out / BEST).exists() else "",
    }


def sweep_pictures(out: Path) -> list[Picture]:
    """Returns Optuna's plots of the finished trials, of each command in a folder."""
    pictures = []
    for number, study in enumerate(open_studies(out), start=1):
        finished = [t.params for t in study.trials if t.state.name == "COMPLETE"]
        params = pd.DataFrame(finished)
        names = [name for name in params if params[name].nunique() > 1]
        kinds = {"slice": "point", "parallel_coordinate": "line"} if names else {}
        for kind, mark in kinds.items():
            picture = Picture(
                name=f"sweep-{number}-{kind}",
                heading=f"validation accuracy by {', '.join(names)}",
                caption=f"A {mark} for each finished trial, the mean over its seeds.",
                draw=partial(_draw, study, names, f"plot_{kind}"),
            )
            pictures.append(picture)
    return pictures


def _draw(study: Any, names: list[str], plot: str) -> Figure:
    """Draws one of Optuna's plots of validation accuracy by flags."""
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as plots

    size = 3.5 * max(2, len(names)), 3.5
    with matplotlib.rc_context({"figure.figsize": size}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls these plots experimental
        getattr(plots, plot)(study, params=names, target_name="validation accuracy")
        figure = pyplot.gcf()
        pyplot.close(figure)
    return figure
