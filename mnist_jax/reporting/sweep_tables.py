"""The table of a sweep, and its best settings as a flag file."""

import collections
import contextlib
import dataclasses
import shlex
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mnist_jax.config import TrainConfig, as_text, changed_fields
from mnist_jax.errors import InputError
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import EpochRecord, RunRecord, read_json
from mnist_jax.reporting.tables import (
    format_commit,
    format_mean,
    format_versions,
    markdown_table,
    mean_and_spread,
)
from mnist_jax.training.run_dir import CONFIG, read_data_dir, read_records
from mnist_jax.training.trials import (
    FAILED,
    FINISHED,
    PRUNED,
    STARTED,
    TrialRecord,
    find_trials,
    read_epochs,
    validation_accuracy,
)

BEST, TABLE, CSV = "best.cfg", "sweep.md", "sweep.csv"
SELECTION_NOTE = (
    "sorted and selected by validation accuracy, the mean over seeds; test accuracy is "
    "measured once, at the end of each finished run, and neither the search nor the "
    "order of this table reads it"
)
_ORDER = FINISHED, STARTED, PRUNED, FAILED


class Row(NamedTuple):
    """A trial in the table."""

    folder: Path
    trial: TrialRecord
    state: str
    records: list[RunRecord]  # of its finished seeds
    epochs: list[list[EpochRecord]]  # by seed
    config: TrainConfig | None  # of a seed; None if none was written

    @property
    def validation(self) -> list[float]:
        """The validation accuracy of each seed: the last one if it is not finished."""
        if self.state == FINISHED:
            return [validation_accuracy(record) for record in self.records]
        last = [epochs[-1].val_accuracy for epochs in self.epochs if epochs]
        return [accuracy for accuracy in last if accuracy is not None]

    @property
    def seconds(self) -> float:
        """Training and evaluation, without compiling: the mean over seeds."""
        return statistics.fmean(
            sum(epoch.train_seconds + epoch.eval_seconds for epoch in epochs)
            for epochs in self.epochs
        )


def read_rows(out: Path) -> list[Row]:
    """Returns the trials of a sweep's folder, the best finished one first."""
    rows = []
    for folder, trial in find_trials(out).items():
        folders = {seed: folder / f"seed{seed}" for seed in trial.seeds}
        records = list(read_records(folders).values())
        finished = len(records) == len(folders)
        epochs = [r.epochs for r in records] if finished else read_epochs(folders)
        state = FINISHED if finished else trial.state
        config = _read_config(folders)
        rows.append(Row(folder, trial, state, records, epochs, config))

    def key(row: Row) -> tuple[int, int, float]:
        epochs = max(map(len, row.epochs)) if row.state != FINISHED else 0
        return (
            _ORDER.index(row.state),
            -epochs,
            -statistics.fmean(row.validation or [0]),
        )

    return sorted(rows, key=key)


def _read_config(folders: Mapping[int, Path]) -> TrainConfig | None:
    for folder in folders.values():
        with contextlib.suppress(InputError):
            return read_json(TrainConfig, folder / CONFIG)
    return None


def read_settings(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Returns each trial's flags that vary in its sweep, or in which trials differ.

    A folder may hold the trials of several commands. Trials of a model are compared.
    """
    fields = [field.name for field in dataclasses.fields(TrainConfig)]
    compared = [n for n in fields if n not in ("seed", "epochs")]  # a column of its own
    values: dict[tuple[str, str], set[Any]] = collections.defaultdict(set)
    for config in (row.config for row in rows if row.config):
        for name in compared:
            values[config.model, name].add(getattr(config, name))
    return [
        {
            name: as_text(getattr(row.config, name))
            for name in compared
            if row.config and len(values[row.config.model, name]) > 1
        }
        | row.trial.settings
        for row in rows
    ]


def setting_names(rows: Sequence[Row]) -> list[str]:
    """Returns the flags of `read_settings`; the model only if there are several."""
    names = dict.fromkeys(name for row in rows for name in row.trial.settings)
    models = {row.trial.settings.get("model") for row in rows}
    names |= dict.fromkeys(name for found in read_settings(rows) for name in found)
    return [n for n in names if n != "model" or len(models) > 1 or len(names) == 1]


def sweep_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Returns one row per trial, in order.

    The varied flags come first, as texts. Accuracies are means over seeds with their
    sample standard deviation, NaN for one seed; of a trial that has not finished, the
    validation accuracy is the last one measured. Seconds are of training and
    evaluation, the mean over seeds.
    """
    names = setting_names(rows)
    table = []
    for row, settings in zip(rows, read_settings(rows), strict=True):
        test = [record.test_accuracy for record in row.records]
        finished = row.state == FINISHED
        table.append(
            {
                **{name: settings.get(name, "-") for name in names},
                "state": row.state,
                "seeds": len(row.validation),
                "val_accuracy": pd.Series(row.validation, dtype=float).mean(),
                "val_accuracy_std": pd.Series(row.validation, dtype=float).std(),
                "test_accuracy": statistics.fmean(test) if finished else float("nan"),
                "test_accuracy_std": pd.Series(
                    test if finished else [], dtype=float
                ).std(),
                "epochs": max(map(len, row.epochs)),
                "seconds": row.seconds,
                "folder": row.folder.name,
            }
        )
    return pd.DataFrame(table)


def format_sweep(frame: pd.DataFrame) -> pd.DataFrame:
    """Formats a `sweep_frame` for printing."""
    names = list(frame.columns[: frame.columns.get_loc("state")])
    table = frame[[*names, "state"]].copy()
    for kind in ("val", "test"):
        values = frame[[f"{kind}_accuracy", f"{kind}_accuracy_std", "seeds"]]
        table["validation accuracy" if kind == "val" else "test accuracy"] = [
            format_mean(*row) if pd.notna(row[0]) else "-"
            for row in values.itertuples(index=False)
        ]
    table["epochs"] = frame["epochs"]
    table["s"] = frame["seconds"].map("{:.2f}".format)
    unneeded = ["state"] if all(frame["state"] == FINISHED) else []
    return table.drop(columns=unneeded)


def sweep_provenance(rows: Sequence[Row]) -> list[str]:
    """Returns where and when the runs of a sweep were made, and how it selects."""
    records = [record for row in rows for record in row.records]
    items = [SELECTION_NOTE]
    if records:
        machines = [record.environment for record in records]
        devices = dict.fromkeys(f"{m.device} ({m.cores} cores)" for m in machines)
        dates = sorted(machine.date[:10] for machine in machines)
        items += [
            f"data: {records[0].dataset}, sha256 {records[0].checksum}",
            f"device: {', '.join(devices)}",
            f"versions: {'; '.join(dict.fromkeys(map(format_versions, machines)))}",
            f"commit: {', '.join(dict.fromkeys(map(format_commit, machines)))}",
            f"date: {dates[0]} to {dates[-1]}",
        ]
    return items


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
    seeds = row.trial.seeds
    words = [f"--flagfile={out / BEST}", f"--seed={seeds[0]}", f"--seeds={len(seeds)}"]
    words.append(f"--run_dir={out / 'best'}")
    return f"python -m experiments.train {shlex.join(words)}"


def write_sweep(out: Path) -> str:
    """Writes a sweep's table as Markdown and CSV, and the flag file of the best.

    Returns:
        The Markdown. Without a finished trial there is no flag file.
    """
    rows = read_rows(out)
    frame = sweep_frame(rows)
    items = "\n".join(f"- {item}" for item in sweep_provenance(rows))
    text = f"{markdown_table(format_sweep(frame))}\n\n{items}"
    write_file(out / TABLE, text + "\n")
    write_file(out / CSV, frame.to_csv(index=False))
    if rows[0].state == FINISHED:
        best = rows[0].records[0]
        accuracy = mean_and_spread(rows[0].validation)
        lines = [
            f"# Validation accuracy {accuracy} on {best.dataset}, selected from "
            f"{len(rows)} trials.",
            f"# {best_command(out, rows[0])}",
            *flag_lines(rows[0]),
        ]
        write_file(out / BEST, "\n".join(lines) + "\n")
    return text
