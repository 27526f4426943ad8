"""Results folders: run directories, and a JSON-lines export of their records."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.records.environment import current_environment
from mnist_jax.records.files import hold_lock, read_lines, write_file
from mnist_jax.records.schema import (
    RunRecord,
    decode,
    json_line,
    read_jsonl,
)
from mnist_jax.training.run_dir import RECORD, read_records, run_keys
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

        Its name ends in a digest of the run's key, machine, versions and `XLA_FLAGS`.
        The commit is not included: to measure changed code, use another folder.
        """
        [key] = run_keys(config, self.dataset, [0]).values()
        machine = current_environment()
        values = system, key, machine.xla_flags, *machine.compared()
        folder = self.out / RUNS / f"{name}-{digest(*values)}"
        return {seed: folder / f"seed{seed}" for seed in self.seeds}

    def plan(self, name: str, config: TrainConfig, system: str | None = None) -> Plan:
        """Returns the plan for the runs of a config."""
        folders = self.folders(name, config, system)
        root = folders[self.seeds[0]].parent
        return Plan(name, config, folders, root, system=system)


def digest(*values: Any) -> str:
    """Returns the end of the name of a folder of runs, by what they have in common."""
    return hashlib.sha256(repr(values).encode()).hexdigest()[:12]


def find_runs(out: Path) -> dict[Path, RunRecord]:
    """Returns the records of the finished runs in a results folder, by directory.

    An unreadable record is skipped with a warning.
    """
    paths = sorted((out / RUNS).glob(f"*/*/{RECORD}"))
    return read_records({path.parent: path.parent for path in paths})


def _oldest_first(runs: Iterable[RunRecord]) -> list[RunRecord]:
    return sorted(runs, key=lambda run: (run.environment.date, run.config.seed))


def read_runs(out: Path, name: str) -> list[RunRecord]:
    """Returns the records of the runs in a results folder.

    Records that are only in its JSON-lines file come first: version 1 wrote no run
    directories. Damaged records are skipped with a warning.
    """
    found = {record.timing_key(): record for record in find_runs(out).values()}
    exported = read_jsonl(RunRecord, out / name)
    others = [record for record in exported if record.timing_key() not in found]
    return others + _oldest_first(found.values())


def export_runs(out: Path, name: str) -> None:
    """Writes the records of all runs in a results folder to a JSON-lines file.

    Existing lines keep their position; a line is updated if its run has a directory.
    """
    with hold_lock(out / LOCK):
        found = {record.timing_key(): record for record in find_runs(out).values()}
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
        return decode(RunRecord, json.loads(line)).timing_key()
    except ValueError:
        return ()
