"""Results folders: run directories, and a JSON-lines export of their records."""

import dataclasses
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.custom import network_sha256
from mnist_jax.records.environment import current_environment
from mnist_jax.records.files import hold_lock, read_lines, write_file
from mnist_jax.records.schema import (
    RunRecord,
    decode_line,
    json_line,
    read_json,
    read_jsonl,
)
from mnist_jax.training.run_dir import RECORD
from mnist_jax.training.sweep import LOCK, Plan

RUNS = "runs"


class Study(NamedTuple):
    """A results folder: run directories and a JSON-lines export of their records."""

    out: Path
    export: str  # name of the JSON-lines file
    dataset: Dataset
    seeds: Sequence[int]

    def folders(
        self, name: str, config: TrainConfig, system: str | None = None
    ) -> dict[int, Path]:
        """Returns the run directory of each seed.

        Its name ends in a digest of the config, data, machine, versions and
        `XLA_FLAGS`. The commit is not included: to measure changed code, use another
        folder.
        """
        key = self.run_keys(config, system, [0])[0]
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
        folder = self.out / RUNS / f"{name}-{digest}"
        return {seed: folder / f"seed{seed}" for seed in self.seeds}

    def plan(
        self,
        name: str,
        config: TrainConfig,
        system: str | None = None,
        need_folders: bool = False,
    ) -> Plan:
        """Returns the plan for the runs of a config.

        A run that is only in the export counts as finished, unless `need_folders`.
        """
        folders = self.folders(name, config, system)

        def find_finished(config: TrainConfig) -> set[int]:
            recorded = {run.run_key() for run in read_runs(self.out, self.export)}
            return {
                seed
                for seed, key in self.run_keys(config, system).items()
                if key in recorded
                and ((folders[seed] / RECORD).exists() or not need_folders)
            }

        root = folders[self.seeds[0]].parent
        return Plan(name, config, folders, root, find_finished, system=system)

    def run_keys(
        self,
        config: TrainConfig,
        system: str | None = None,
        seeds: Sequence[int] | None = None,
    ) -> dict[int, tuple[Any, ...]]:
        """Returns the `run_key` of each seed, known before it is trained."""
        machine, data = current_environment(), self.dataset
        source, data_key = network_sha256(config), (data.checksum, data.note)
        shared = source, machine.xla_flags, *data_key, *machine.compared()
        config = config.for_dataset(data.name)
        configs = [
            dataclasses.replace(config, seed=seed) for seed in seeds or self.seeds
        ]
        return {config.seed: (system, config, *shared) for config in configs}


def find_runs(out: Path) -> dict[Path, RunRecord]:
    """Returns the records of the finished runs in a results folder, by directory.

    An unreadable record is skipped with a warning.
    """
    records = {}
    for path in sorted((out / RUNS).glob(f"*/*/{RECORD}")):
        try:
            records[path.parent] = read_json(RunRecord, path)
        except InputError as error:
            logging.warning("%s", error)
    return records


def _oldest_first(runs: Iterable[RunRecord]) -> list[RunRecord]:
    return sorted(runs, key=lambda run: (run.environment.date, run.config.seed))


def read_runs(out: Path, name: str) -> list[RunRecord]:
    """Returns the records of the runs in a results folder.

    Records that are only in its JSON-lines file come first: version 1 wrote no run
    directories. Damaged records are skipped with a warning.
    """
    found = {record.run_key(): record for record in find_runs(out).values()}
    exported = read_jsonl(RunRecord, out / name)
    others = [record for record in exported if record.run_key() not in found]
    return others + _oldest_first(found.values())


def export_runs(out: Path, name: str) -> None:
    """Writes the records of all runs in a results folder to a JSON-lines file.

    Existing lines keep their position; a line is updated if its run has a directory.

    Raises:
        InputError: the file cannot be read or written.
    """
    with hold_lock(out / LOCK, lambda holder: None):
        found = {record.run_key(): record for record in find_runs(out).values()}
        lines = []
        for line in read_lines(out / name):
            record = found.pop(_key(line), None)
            lines.append(f"{json_line(record)}\n".encode() if record else line)
        if lines and not lines[-1].endswith(b"\n"):  # cut off by a kill
            lines.append(b"\n")
        new = _oldest_first(found.values())
        lines += [f"{json_line(record)}\n".encode() for record in new]
        write_file(out / name, b"".join(lines))


def _key(line: bytes) -> tuple[Any, ...]:
    try:
        return decode_line(RunRecord, line).run_key()
    except ValueError:
        return ()
