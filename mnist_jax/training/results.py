"""Results folders: run directories, and a JSON-lines export of their records."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.records.environment import current_environment
from mnist_jax.records.files import hold_lock, write_file
from mnist_jax.records.schema import RunRecord, json_line
from mnist_jax.training.run_dir import RECORD, read_record, run_keys
from mnist_jax.training.runs import LOCK

RUNS = "runs"


def run_folders(
    out: Path,
    name: str,
    config: TrainConfig,
    dataset: Dataset,
    seeds: Sequence[int],
    system: str | None = None,
) -> dict[int, Path]:
    """Returns the run directory of each seed of a config in a results folder.

    The name of their parent begins with `name` and ends in a digest of the runs' key,
    machine, versions and `XLA_FLAGS`. The commit is not included: to measure changed
    code, use another folder.
    """
    [key] = run_keys(config, dataset, [0]).values()
    values = system, key, *current_environment().compared()
    root = out / RUNS / f"{name}-{digest(*values)}"
    return {seed: root / f"seed{seed}" for seed in seeds}


def digest(*values: Any) -> str:
    """Returns the end of the name of a folder of runs, by what they have in common."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]


def find_runs(out: Path) -> dict[Path, RunRecord]:
    """Returns the finished runs in a results folder by run directory, oldest first.

    An unreadable record is skipped with a warning.
    """
    folders = [path.parent for path in sorted((out / RUNS).glob(f"*/*/{RECORD}"))]
    runs = [(folder, run) for folder in folders if (run := read_record(folder))]
    runs.sort(key=lambda pair: (pair[1].environment.date, pair[1].config.seed))
    return dict(runs)


def read_runs(out: Path) -> list[RunRecord]:
    """Returns the records of the finished runs in a results folder, oldest first."""
    return list(find_runs(out).values())


def export_runs(out: Path, name: str) -> None:
    """Writes the records of all runs in a results folder to a JSON-lines file."""
    with hold_lock(out / LOCK):
        lines = [f"{json_line(record)}\n" for record in read_runs(out)]
        write_file(out / name, "".join(lines))
