"""The functions that `import mnist_jax` offers: train and compare from Python."""

import dataclasses
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import jax
import pandas as pd

from mnist_jax.config import TrainConfig, check_used
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.splits import split_dataset
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.networks import create_model
from mnist_jax.records.environment import available_cores
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import RunRecord, read_json, write_json
from mnist_jax.reporting.predictions import run_details
from mnist_jax.reporting.progress import follow
from mnist_jax.reporting.report import RESULTS
from mnist_jax.reporting.tables import (
    check_targets,
    comparison_frame,
    format_markdown,
    group_by_table,
)
from mnist_jax.training import distributed
from mnist_jax.training.run_dir import (
    DETAILS,
    PARAMS,
    RECORD,
    TrainedRun,
    export_runs,
    load_run,
    run_folders,
)
from mnist_jax.training.runs import Events, seed_folders, train_runs, train_seeds

Folder = str | os.PathLike[str]


def train(
    config: TrainConfig,
    seeds: int | Sequence[int] = 1,
    *,
    dataset: Dataset | None = None,
    run_dir: Folder | None = None,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 0,
    init_from: Folder | None = None,
    quiet: bool = False,
) -> list[TrainedRun]:
    """Trains a config over several seeds and evaluates each run on the test set.

    The Python counterpart of `python -m experiments.train`. Call `setup` first.

    Args:
        config: network, data and training.
        seeds: number of seeds, counted from `config.seed`, or a sequence of seeds. They
            are trained together, and times are each seed's share.
        dataset: images and labels; default: `load_dataset(config.dataset)`.
        run_dir: where to keep the runs; one seed is written to the directory itself,
            several to its subdirectories `seed0`, `seed1`, ... Default: nowhere.
        resume: keep finished runs in `run_dir` and resume unfinished ones.
        overwrite: replace runs in `run_dir`.
        checkpoint_every: epochs between checkpoints in `run_dir`; 0 writes none.
        init_from: run directory of a finished run to take the initial parameters from.
        quiet: print no progress and no results; warnings are still logged.

    Returns:
        One run per seed, in the order of the seeds.

    >>> config = TrainConfig(dataset="digits", epochs=1, hidden=(16,))
    >>> [run] = train(config, quiet=True)
    >>> run.record.test_images, run.predict(load_dataset("digits").test.images).shape
    (360, (360, 10))
    """
    check_used(config)
    _warn_of_one_device([config])
    seeds = _seeds(seeds, config.seed)
    if run_dir is None and (resume or overwrite or checkpoint_every):
        raise InputError("resume, overwrite and checkpoint_every need run_dir; give it")
    with distributed.output_folder(run_dir) as root:
        events = train_seeds(
            config,
            dataset or load_dataset(config.dataset),
            root,
            seeds,
            init_from,
            resume=resume,
            overwrite=overwrite,
            checkpoint_every=checkpoint_every,
        )
        _run(events, quiet)
        return [load_run(folder) for folder in seed_folders(root, seeds).values()]


def compare(
    configs: TrainConfig | Iterable[TrainConfig],
    seeds: int | Sequence[int] = 1,
    *,
    dataset: Dataset | None = None,
    out: Folder | None = None,
    targets: Sequence[float] = (),
    against: TrainConfig | None = None,
    quiet: bool = False,
) -> pd.DataFrame:
    """Trains several configs over the same seeds and returns their comparison.

    The Python counterpart of `python -m benchmarks.compare`. Call `setup` first.

    Args:
        configs: what to compare, on one dataset.
        seeds: as for `train`; counted from the seed of the first config.
        dataset: as for `train`.
        out: folder for the runs and their tables. Runs that it holds are not trained
            again. Default: nothing is kept.
        targets: validation accuracies above 0 and below 1; each adds the training
            seconds until it was reached to the table.
        against: one of the configs: adds the difference of each mean test accuracy
            from its, with a 95 % interval, paired by seed.
        quiet: print no progress and no results; warnings are still logged.

    Returns:
        One row per config, best mean test accuracy first; see `comparison_frame`.

    >>> configs = [
    ...     TrainConfig(dataset="digits", hidden=h, epochs=5) for h in [(), (64,)]
    ... ]
    >>> compare(configs, quiet=True)[["model", "settings", "parameters"]]
      model            settings  parameters
    0   mlp  hidden=64 epochs=5       50890
    1   mlp    hidden= epochs=5        7850
    """
    configs = [configs] if isinstance(configs, TrainConfig) else list(configs)
    for config in configs:
        check_used(config)
    if len(names := {config.dataset for config in configs}) != 1:
        given = ", ".join(sorted(names)) or "none"
        raise InputError(f"compare() needs configs of one dataset; got {given}")
    if len({dataclasses.replace(c, seed=0) for c in configs}) < len(configs):
        raise InputError(
            "compare() got two configs that are equal but for the seed; give seeds= "
            "instead"
        )
    check_targets(targets, configs)
    _warn_of_one_device(configs)
    seeds = _seeds(seeds, configs[0].seed)
    with distributed.output_folder(out) as folder:
        dataset = dataset or load_dataset(configs[0].dataset)
        _run(train_configs(folder, configs, dataset, seeds), quiet)
        write_tables(folder, targets, against)
        runs = []
        for config in configs:
            folders = run_folders(folder, config, dataset, seeds)
            runs += [read_json(RunRecord, path / RECORD) for path in folders.values()]
        return comparison_frame(runs, targets, against)


def train_configs(
    out: Path, configs: Sequence[TrainConfig], dataset: Dataset, seeds: Sequence[int]
) -> Events:
    """Trains the missing runs of each config in a results folder.

    Each run also gets the data for the pictures of a report.
    """
    for config in configs:
        create_model(config, dataset.shapes)  # fails before anything is trained
    for config in configs:
        folders = run_folders(out, config, dataset, seeds)
        yield from train_runs(config, dataset, folders)
        test = split_dataset(dataset, config).test
        for folder in folders.values():
            if (folder / PARAMS).exists() and not (folder / DETAILS).exists():
                write_json(folder / DETAILS, run_details(load_run(folder), test))


def write_tables(
    out: Path, targets: Sequence[float] = (), against: TrainConfig | None = None
) -> str:
    """Exports the runs of a results folder as JSON lines, Markdown and CSV.

    `targets` and `against` (see `comparison_frame`) are not recorded: each call writes
    columns of its own.

    Returns:
        The Markdown to print, with the columns that fit.
    """
    records = export_runs(out, RESULTS)
    markdown = format_markdown(records, targets, against)
    write_file(out / "compare.md", markdown + "\n")
    frames = [
        comparison_frame(group, targets, against).assign(
            device=group[0].environment.device
        )
        for group in group_by_table(records)
    ]
    write_file(out / "compare.csv", pd.concat(frames).to_csv(index=False))
    return format_markdown(records, targets, against, all_columns=False)


def _seeds(seeds: int | Iterable[int], first: int) -> list[int]:
    """Returns the seeds as a list."""
    return [*seeds] if isinstance(seeds, Iterable) else [*range(first, first + seeds)]


def _run(events: Events, quiet: bool) -> None:
    """Trains to the end."""
    if quiet or not distributed.is_writer():
        for _ in events:
            pass
    else:
        follow(events)


def _warn_of_one_device(configs: Sequence[TrainConfig]) -> None:
    """Warns if JAX has not been set up to use the cores of a CPU."""
    slower = any(c.model != "mlp" and not c.cpu_devices for c in configs)
    one_device = jax.default_backend() == "cpu" and jax.device_count() == 1
    if slower and one_device and available_cores() > 1:
        warnings.warn(
            f"JAX uses {available_cores()} CPU cores as one device, on which the LSTM "
            "and CNN train more slowly: call mnist_jax.setup() before any other use of "
            "JAX, or set cpu_devices=1 if this is intended",
            stacklevel=3,
        )
