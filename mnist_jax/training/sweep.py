"""Many runs: which are finished, which are to be resumed, which are still to start.

Every program that trains into run directories does it here, so that no run is repeated,
no two processes train the same one, and a stop at any moment loses nothing.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from absl import logging
from flax import linen as nn

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.records.environment import code_digest, current_environment
from mnist_jax.records.files import hold_lock, read_lines, write_file
from mnist_jax.records.schema import (
    RunRecord,
    decode_line,
    json_line,
    read_json,
    read_jsonl,
)
from mnist_jax.training.checkpoints import (
    KEEP,
    Checkpoint,
    Origin,
    has_checkpoints,
    load_checkpoint,
    remove_checkpoints,
    seeds_together,
)
from mnist_jax.training.experiment import Experiment, prepare
from mnist_jax.training.fit import Callbacks
from mnist_jax.training.run_dir import CONFIG, RECORD, fit_into

HOW_TO_RESUME = "the same command resumes where this one stopped"
_RUNS, _LOCK = "runs", ".lock"


class Plan(NamedTuple):
    """What to train into run directories, and how."""

    name: str  # of what is trained, for messages
    config: TrainConfig  # its seed plays no part
    folders: Mapping[int, Path]  # the run directory of each seed
    root: Path  # the folder of all of them, which is locked meanwhile
    find_finished: Callable[[], Collection[int]]  # asked once the lock is held
    sweep: bool = True  # see `train_runs`
    resume: bool = True  # whether unfinished runs in the folders are to be resumed
    checkpoint_every: int = 1
    keep: int = KEEP
    system: str | None = None  # the published system that the runs are of, if any
    start_params: Callable[[int, nn.Module], Any] | None = None  # of a seed


class Observer(Protocol):
    """What is told of the training; `reporting/progress.py` has one that prints."""

    def report(self, message: str) -> None: ...

    def compiling(self, config: TrainConfig) -> None: ...

    def training(
        self, experiment: Experiment, folders: Mapping[int, Path]
    ) -> Callbacks: ...

    def finished(self, record: RunRecord) -> None: ...

    def check_stopped(self) -> None: ...


class Study(NamedTuple):
    """A folder of results: runs below it, and a JSON-lines file of their records."""

    out: Path
    export: str  # name of the JSON-lines file
    dataset: Dataset  # as `load_dataset` returned it
    seeds: Sequence[int]

    def folders(
        self, name: str, config: TrainConfig, system: str | None = None
    ) -> dict[int, Path]:
        """Returns the directory of each seed's run of a config.

        Its name ends in a digest of all that makes two runs the same but for their
        seeds: config, data, machine, versions, `XLA_FLAGS`. The commit is not among
        them: who changes the code and wants other numbers gives another folder.
        """
        key = self._keys(config, system, [0])[0]
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:12]
        folder = self.out / _RUNS / f"{name}-{digest}"
        return {seed: folder / f"seed{seed}" for seed in self.seeds}

    def plan(
        self,
        name: str,
        config: TrainConfig,
        system: str | None = None,
        need_folders: bool = False,
    ) -> Plan:
        """Returns what it takes to have the runs of a config.

        Runs that only the export holds count as finished, unless `need_folders`.
        """
        folders = self.folders(name, config, system)

        def find_finished() -> set[int]:
            recorded = {run.run_key() for run in read_runs(self.out, self.export)}
            return {
                seed
                for seed, key in self._keys(config, system, self.seeds).items()
                if key in recorded
                and ((folders[seed] / RECORD).exists() or not need_folders)
            }

        root = folders[self.seeds[0]].parent
        return Plan(name, config, folders, root, find_finished, system=system)

    def _keys(
        self, config: TrainConfig, system: str | None, seeds: Sequence[int]
    ) -> dict[int, tuple[Any, ...]]:
        """Returns the `run_key` that the record of each run to come will have."""
        machine, data = current_environment(), self.dataset
        shared = machine.xla_flags, data.checksum, data.note, *machine.compared()
        configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
        return {config.seed: (system, config, *shared) for config in configs}


def find_runs(out: Path) -> dict[Path, RunRecord]:
    """Returns the records of the finished runs below a folder, by their directories.

    One that cannot be used is named in a warning and left out.
    """
    records = {}
    for path in sorted((out / _RUNS).glob(f"*/*/{RECORD}")):
        try:
            records[path.parent] = read_json(RunRecord, path)
        except InputError as error:
            logging.warning("%s", error)
    return records


def _oldest_first(runs: Iterable[RunRecord]) -> list[RunRecord]:
    return sorted(runs, key=lambda run: (run.environment.date, run.config.seed))


def read_runs(out: Path, name: str) -> list[RunRecord]:
    """Returns the records of the runs below a folder.

    First come those that only its JSON-lines file of that name holds: version 1 of the
    records had nothing else. Damaged ones are named in a warning and left out.
    """
    found = {record.run_key(): record for record in find_runs(out).values()}
    exported = read_jsonl(RunRecord, out / name)
    others = [record for record in exported if record.run_key() not in found]
    return others + _oldest_first(found.values())


def export_runs(out: Path, name: str) -> None:
    """Writes the records of all runs below a folder as a JSON-lines file.

    A line that the file holds already stays where it is: as it is, unless a directory
    has its run.

    Raises:
        InputError: the file cannot be read or written.
    """
    with hold_lock(out / _LOCK, lambda: None):
        found = {record.run_key(): record for record in find_runs(out).values()}
        lines = []
        for line in read_lines(out / name):
            record = found.pop(_key(line), None)
            lines.append(_line(record) if record else line)
        if lines and not lines[-1].endswith(b"\n"):  # torn by a kill, and left so
            lines.append(b"\n")
        lines += map(_line, _oldest_first(found.values()))
        write_file(out / name, b"".join(lines))


def _line(record: RunRecord) -> bytes:
    return f"{json_line(record)}\n".encode()


def _key(line: bytes) -> tuple[Any, ...]:
    try:
        return decode_line(RunRecord, line).run_key()
    except ValueError:
        return ()


def train_runs(plan: Plan, dataset: Dataset, observer: Observer) -> Experiment | None:
    """Trains what a plan's run directories lack, as many seeds together as can be.

    Seeds that were stopped together are resumed together, even where some of them were
    recorded before the stop: alone they might be rounded otherwise.

    A plan that is no sweep is of directories that the user named. There another process
    that trains into them, or checkpoints of which none is sound, are errors. A sweep
    waits for such a process and finds its runs recorded; it starts over where there is
    no sound checkpoint of the same data and code; and it removes the checkpoints of
    runs once all are finished.

    Returns:
        The experiment that was trained last; None if nothing was left to train.
    """
    experiment = None

    def wait() -> None:
        if not plan.sweep:
            raise InputError(
                f"another process is training in {plan.root}; wait for it to end, or "
                "give another --run_dir"
            )
        observer.report(f"{plan.name}: waiting for the process that trains the same")

    with hold_lock(plan.root / _LOCK, wait, observer.check_stopped):
        finished = plan.find_finished()
        for seed in sorted(finished):
            observer.report(f"{plan.name}, seed {seed}: already recorded")
        for seeds, checkpoint in _groups(plan, dataset, finished, observer):
            folders = {seed: plan.folders[seed] for seed in seeds}
            observer.compiling(plan.config)
            experiment = prepare(plan.config, dataset, len(seeds))
            params = None
            if plan.start_params is not None:
                params = [plan.start_params(seed, experiment.model) for seed in seeds]
            for record in fit_into(
                experiment,
                folders,
                observer.training(experiment, folders),
                params,
                checkpoint_every=plan.checkpoint_every,
                keep=plan.keep,
                resume=checkpoint,
                recorded=finished,
                system=plan.system,
            ):
                observer.finished(record)
            observer.check_stopped()
        if plan.sweep:
            for path in plan.folders.values():
                remove_checkpoints(path)
    return experiment


def _groups(
    plan: Plan, dataset: Dataset, finished: Collection[int], observer: Observer
) -> list[tuple[list[int], Checkpoint | None]]:
    """Returns the seeds to train together, each group with what to resume it from."""
    missing = [seed for seed in plan.folders if seed not in finished]
    if not plan.resume:
        return [(missing, None)]
    held = [seed for seed in missing if has_checkpoints(plan.folders[seed])]
    groups: list[tuple[list[int], Checkpoint | None]] = []
    resumed: set[int] = set()
    for seed in held:
        noted = [s for s in seeds_together(plan.folders[seed]) if s in plan.folders]
        seeds = noted if seed in noted else held
        if seed not in resumed and (checkpoint := _checkpoint(plan, dataset, seeds)):
            observer.report(f"{plan.name}: resuming after epoch {checkpoint.epoch}")
            groups.append((seeds, checkpoint))
            resumed.update(seeds)
    if fresh := [seed for seed in missing if seed not in resumed]:
        missed = "no checkpoint to resume from, starting from the beginning"
        if any((plan.folders[seed] / CONFIG).exists() for seed in fresh):
            observer.report(f"{plan.name}: {missed}")
        groups.append((fresh, None))
    return groups


def _checkpoint(
    plan: Plan, dataset: Dataset, seeds: Sequence[int]
) -> Checkpoint | None:
    """Returns the checkpoint to resume seeds from; errors as `load_checkpoint`."""
    folders = {seed: plan.folders[seed] for seed in seeds}
    if not plan.sweep:
        return load_checkpoint(folders, plan.config, Origin(dataset.checksum))
    try:
        origin = Origin(dataset.checksum, code_digest())
        return load_checkpoint(folders, plan.config, origin)
    except InputError:  # none of them is sound: each was named in a warning
        return None
