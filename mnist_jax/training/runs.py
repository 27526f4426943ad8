"""Sweeps: trains the missing runs of a set, resuming unfinished ones.

Every program that trains into run directories goes through `train_runs`, so that no run
is repeated, no two processes train the same run, and a stop loses at most the work
since the last checkpoint.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import jax

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.records.environment import code_digest
from mnist_jax.records.files import hold_lock
from mnist_jax.records.schema import RunKey, RunRecord
from mnist_jax.training.checkpoints import (
    KEEP,
    Checkpoint,
    load_checkpoint,
    remove_checkpoints,
)
from mnist_jax.training.fit import SILENT, Callbacks
from mnist_jax.training.prepare import Experiment, prepare
from mnist_jax.training.run_dir import (
    CONFIG,
    RECORD,
    check_run_dir,
    fit_into,
    is_finished,
    read_records,
    run_keys,
)

HOW_TO_RESUME = "the same command resumes where this one stopped"
LOCK = ".lock"  # in the folder of a set of runs


class Plan(NamedTuple):
    """One config with its seeds and run directories."""

    name: str  # shown in messages
    config: TrainConfig  # its seed is ignored
    folders: Mapping[int, Path]  # seed -> run directory
    root: Path  # parent of the run directories, locked during training
    # Raises if the directories hold other runs; called while the lock is held.
    check_folders: Callable[[], None] = lambda: None
    sweep: bool = True  # see `train_runs`
    resume: bool = True  # whether to resume unfinished runs
    checkpoint_every: int = 1
    keep: int = KEEP
    system: str | None = None  # name of the published system, if any
    start_from: Mapping[int, Path] | None = None  # see `run_keys`


class Observer:
    """Receives the progress of training and ignores it; `ProgressPrinter` prints it."""

    def report(self, message: str) -> None:
        """Receives a message for the user."""

    def compiling(self, config: TrainConfig) -> None:
        """Called before a config is compiled."""

    def training(
        self, experiment: Experiment, folders: Mapping[int, Path]
    ) -> Callbacks:
        """Returns the callbacks of the training that starts now."""
        return SILENT

    def finished(self, record: RunRecord) -> None:
        """Called with the record of each finished run."""

    def check_stopped(self) -> None:
        """Raises `Stopped` if the program should end."""


def plan_runs(
    config: TrainConfig,
    seeds: Sequence[int],
    root: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    checkpoint_every: int = 0,
    keep: int = KEEP,
    init_from: Path | None = None,
) -> Plan:
    """Returns the plan to train into a directory that the user chose.

    One seed trains into `root` itself, several into `root/seed0`, `root/seed1`, ...

    Args:
        config: what to train; its seed is ignored.
        seeds: seeds of the runs, trained together.
        root: the directory.
        resume: keep finished runs and resume unfinished ones.
        overwrite: replace runs that the directory holds.
        checkpoint_every: epochs between checkpoints; 0 writes none.
        keep: how many checkpoints to keep.
        init_from: run directory whose parameters to start from.

    Raises:
        InputError: the directory holds other runs or is in use.
    """
    if resume and overwrite:
        raise InputError(
            "--resume continues the run in --run_dir and --overwrite replaces it; "
            "give one of them"
        )
    folders = {seed: root / f"seed{seed}" for seed in seeds}
    others = [root]  # where `root` has runs of another number of seeds
    if len(seeds) == 1:
        folders, others = {seeds[0]: root}, sorted(root.glob("seed*"))

    def check_folders() -> None:
        if held := [folder for folder in others if (folder / CONFIG).exists()]:
            raise InputError(
                f"{held[0]} already holds a run, and one seed is written to --run_dir "
                f"itself, several to its subdirectories; give another --run_dir than "
                f"{root}, or the number of seeds that it holds"
            )
        for folder in folders.values():
            check_run_dir(folder, resume or overwrite)

    plan = Plan(
        name=config.name,
        config=config,
        folders=folders,
        root=root,
        check_folders=check_folders,
        sweep=False,
        resume=resume,
        checkpoint_every=checkpoint_every,
        keep=keep,
        start_from=dict.fromkeys(seeds, init_from) if init_from else None,
    )
    with _hold_locks(plan._replace(folders={}), Observer()):
        check_folders()  # before the data is loaded
    return plan


def train_runs(
    plan: Plan,
    dataset: Dataset,
    observer: Observer,
    prepare_runs: Callable[[TrainConfig, Dataset, int], Experiment] | None = None,
) -> Experiment | None:
    """Trains the missing runs of a plan, with as many seeds together as possible.

    With `patience`, seeds train one by one, since each stops after another epoch.

    Seeds that were stopped together are resumed together, even if some of them had
    already been recorded: trained alone, they might round differently.

    Without `plan.sweep` the user chose the directories: it is then an error if another
    process trains into them, or if no checkpoint is intact. A sweep waits for the other
    process and uses its runs; without an intact checkpoint of the same data and code it
    starts over; and it removes the checkpoints once all runs are finished.

    Args:
        plan: what to train, and where.
        dataset: as returned by `load_dataset`.
        observer: receives the progress.
        prepare_runs: called instead of `prepare`, to reuse compiled programs.

    Returns:
        The experiment trained last; None if all runs were finished.
    """
    experiment = None
    with _hold_locks(plan, observer):
        keys = run_keys(plan.config, dataset, plan.folders, plan.start_from)
        finished = set(_find_finished(plan, keys))
        for seed in sorted(finished):
            observer.report(f"{plan.name}, seed {seed}: already recorded")
        for seeds, checkpoint in _groups(plan, keys, dataset, finished, observer):
            folders = {seed: plan.folders[seed] for seed in seeds}
            observer.check_stopped()
            observer.compiling(plan.config)
            experiment = (prepare_runs or prepare)(plan.config, dataset, len(seeds))
            observer.check_stopped()
            for record in fit_into(
                experiment,
                folders,
                observer.training(experiment, folders),
                plan.start_from,
                checkpoint_every=plan.checkpoint_every,
                keep=plan.keep,
                resume=checkpoint,
                system=plan.system,
            ):
                observer.finished(record)
        if plan.sweep:
            for path in plan.folders.values():
                remove_checkpoints(path)
    return experiment


def _find_finished(plan: Plan, keys: Mapping[int, RunKey]) -> list[int]:
    """Returns the seeds whose runs are finished; raises as `is_finished`."""
    if plan.sweep:
        records = read_records(plan.folders)
        return [seed for seed, record in records.items() if record.key == keys[seed]]
    plan.check_folders()  # another process may have trained there in the meantime
    folders = plan.folders if plan.resume else {}
    return [seed for seed, folder in folders.items() if is_finished(folder, keys[seed])]


def _ignore() -> None:
    """Does nothing, where nothing can be stopped."""


@contextlib.contextmanager
def _hold_locks(plan: Plan, observer: Observer) -> Iterator[None]:
    """Holds the locks of a plan's directories; see `train_runs` for the wait."""

    def wait() -> None:
        if not plan.sweep:
            raise InputError(
                f"another process is training in {plan.root}; wait until it ends, or "
                "use another --run_dir"
            )
        observer.report(
            f"{plan.name}: waiting for another process, which trains these runs"
        )

    # One of several seeds may also be trained alone, into its own directory.
    folders = () if plan.sweep else plan.folders.values()
    with contextlib.ExitStack() as stack:
        for path in [folder / LOCK for folder in dict.fromkeys([plan.root, *folders])]:
            # The processes of a job agree on a stop, but only one waits here.
            check = observer.check_stopped if jax.process_count() == 1 else _ignore
            stack.enter_context(hold_lock(path, wait, check))
        yield


def _groups(
    plan: Plan,
    keys: Mapping[int, RunKey],
    dataset: Dataset,
    finished: Set[int],
    observer: Observer,
) -> list[tuple[list[int], Checkpoint | None]]:
    """Returns groups of seeds to train together, each with a checkpoint or None."""
    groups: list[tuple[list[int], Checkpoint | None]] = []
    if not plan.folders.keys() - finished:
        return groups
    open_keys, code = dict(keys), code_digest() if plan.sweep else None
    for seed, folder in plan.folders.items() if plan.resume else ():
        if seed not in open_keys:  # in the group of an earlier one
            continue
        try:
            found = load_checkpoint(folder, open_keys, dataset.shapes, code)
        except InputError:  # none is intact; each has been named in a warning
            if not plan.sweep and seed not in finished:
                raise
            continue
        if found and not finished >= set(found[0]):
            observer.report(f"{plan.name}: resuming after epoch {found[1].epoch}")
            groups.append(found)
            for each in found[0]:
                del open_keys[each]
    fresh = [seed for seed in open_keys if seed not in finished]
    for folder in [plan.folders[seed] for seed in fresh] if plan.resume else ():
        if not plan.sweep and (folder / RECORD).exists():
            raise InputError(
                f"--resume: the run in {folder} finished after fewer epochs and has no "
                "checkpoint to resume from; give another --run_dir, or --overwrite to "
                "replace that run"
            )
    if plan.resume and any((plan.folders[s] / CONFIG).exists() for s in fresh):
        missed = "no checkpoint to resume from, starting from the beginning"
        observer.report(f"{plan.name}: {missed}")
    if plan.config.patience is not None:  # each stops after another epoch
        return groups + [([seed], None) for seed in fresh]
    return groups + ([(fresh, None)] if fresh else [])
