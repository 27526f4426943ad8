"""A comparison of several configs: their runs, details and tables in one folder."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mnist_jax.config import TrainConfig
from mnist_jax.data.splits import split_dataset
from mnist_jax.data.types import Dataset
from mnist_jax.models.networks import create_model
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import write_json
from mnist_jax.reporting.predictions import run_details
from mnist_jax.reporting.report import RESULTS
from mnist_jax.reporting.tables import comparison_frame, format_markdown, group_by_table
from mnist_jax.training.results import export_runs, plan_results, read_runs
from mnist_jax.training.run_dir import DETAILS, PARAMS, load_run
from mnist_jax.training.runs import Observer, train_runs


def train_configs(
    out: Path,
    configs: Sequence[TrainConfig],
    dataset: Dataset,
    seeds: Sequence[int],
    observer: Observer,
) -> list[Path]:
    """Trains the missing runs of each config and writes the details of all runs.

    Args:
        out: the results folder.
        configs: what to train.
        dataset: as returned by `load_dataset`.
        seeds: of each config's runs.
        observer: receives the progress.

    Returns:
        The run directories.
    """
    for config in configs:
        create_model(config, dataset.shapes)  # fails before anything is trained
    export_runs(out, RESULTS)  # so does a folder that cannot be written
    folders = []
    for config in configs:
        plan = plan_results(out, config.name, config, dataset, seeds)
        train_runs(plan, dataset, observer)
        test = split_dataset(dataset, config).test
        for folder in plan.folders.values():
            if (folder / PARAMS).exists() and not (folder / DETAILS).exists():
                write_json(folder / DETAILS, run_details(load_run(folder), test))
            folders.append(folder)
    return folders


def write_tables(
    out: Path,
    targets: Sequence[float] = (),
    against: TrainConfig | None = None,
    all_columns: bool = True,
) -> str:
    """Exports the runs of a results folder as JSON lines, Markdown and CSV.

    Args:
        out: the folder.
        targets: validation accuracies, as returned by `check_targets`. They are not
            recorded: each call writes the columns of its own.
        against: as for `comparison_frame`; not recorded either.
        all_columns: of what is returned; the files have them all.

    Returns:
        The Markdown, to print.
    """
    export_runs(out, RESULTS)
    records = read_runs(out)
    markdown = format_markdown(records, targets, against)
    write_file(out / "compare.md", markdown + "\n")
    frames = [
        comparison_frame(group, targets, against).assign(
            device=group[0].environment.device
        )
        for group in group_by_table(records)
    ]
    write_file(out / "compare.csv", pd.concat(frames).to_csv(index=False))
    return format_markdown(records, targets, against, all_columns)
