"""Trains runs into run directories: what is missing, resuming what was stopped.

Every program that keeps runs goes through `train_runs`, so that no run is repeated, no
two processes train the same run, and a stop loses at most the work since the last
checkpoint.
"""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.networks import variable_shapes
from mnist_jax.records.environment import code_digest
from mnist_jax.records.files import hold_lock, write_file
from mnist_jax.records.schema import RunKey, append_jsonl, json_line, write_json
from mnist_jax.training.checkpoints import (
    Checkpoint,
    find_checkpoints,
    load_checkpoint,
    remove_checkpoints,
    save_checkpoint,
    save_params,
)
from mnist_jax.training.fit import Epoch, Progress, Result, fit, is_over
from mnist_jax.training.prepare import Experiment, prepare
from mnist_jax.training.run_dir import (
    CONFIG,
    DATA_DIR,
    FILES,
    LOCK,
    METRICS,
    PARAMS,
    RECORD,
    load_variables,
    read_record,
    run_keys,
)

HOW_TO_RESUME = "the same command resumes where this one stopped"
_EVENTS = "events.out.tfevents.*"  # TensorBoard would merge two runs' files


class Started(NamedTuple):
    """Seeds whose programs are compiled, and whose first step follows."""

    experiment: Experiment
    folders: Mapping[int, Path]  # run directory of each seed


# What training yields: a message for the user, what happened, or None ten times a
# second while it waits for another process. All files of an `Epoch` or a `Result` are
# written when it is yielded. A caller stops training by closing the generator.
Event = str | Started | Progress | Epoch | Result | None
Events = Generator[Event, None, None]


def train_runs(
    config: TrainConfig,
    dataset: Dataset,
    folders: Mapping[int, Path],
    *,
    chosen: bool = False,
    resume: bool = True,
    overwrite: bool = False,
    checkpoint_every: int = 1,
    start_from: Mapping[int, Path] | None = None,
    system: str | None = None,
    prepare_runs: Callable[[TrainConfig, Dataset, int], Experiment] = prepare,
) -> Events:
    """Trains the missing runs of a config, with as many seeds together as possible.

    Seeds that were stopped together are resumed together, even if some of them had
    already been recorded: trained alone, they might round differently. With `patience`,
    seeds train one by one, since each stops after another epoch.

    In a results folder, it waits for another process that trains these runs, starts
    over without an intact checkpoint of the same data and code, and removes the
    checkpoints in the end. In directories that the user chose, another process and
    damaged checkpoints are errors, and the checkpoints stay, for further epochs.

    The defaults are for a results folder.

    Args:
        config: what to train; its seed is ignored.
        dataset: as returned by `load_dataset`.
        folders: run directory of each seed.
        chosen: whether the user chose the directories.
        resume: keep finished runs and resume unfinished ones.
        overwrite: replace runs that the directory holds.
        checkpoint_every: epochs between checkpoints; 0 writes none.
        start_from: as for `run_keys`.
        system: published system that the runs reproduce, if any; named in messages.
        prepare_runs: called instead of `prepare`, to reuse compiled programs.
    """
    name = system or config.name
    if resume and overwrite:
        raise InputError(
            "--resume continues the run in --run_dir and --overwrite replaces it; "
            "give one of them"
        )
    with contextlib.ExitStack() as stack:
        waiting = f"{name}: waiting for another process that trains these runs"
        yield from _lock(folders, None if chosen else waiting, stack)
        if chosen and not (resume or overwrite):
            _refuse_runs(folders)
        keys = run_keys(config, dataset, folders, start_from)
        code = None if chosen else code_digest()
        finished, groups = plan(folders if resume else {}, keys, code)
        for seed in sorted(finished):
            yield f"{name}, seed {seed}: already recorded"
        for seeds, checkpoint in groups:
            if checkpoint is not None:
                yield f"{name}: resuming after epoch {checkpoint.epoch}"
            elif resume and (chosen or (folders[seeds[0]] / CONFIG).exists()):
                missing = "no checkpoint to resume from, starting from the beginning"
                yield f"{name}: {missing}"
            yield f"{config.name}: compiling ..."
            experiment = prepare_runs(config, dataset, len(seeds))
            yield from fit_into(
                experiment,
                {seed: folders[seed] for seed in seeds},
                keys,
                start_from,
                checkpoint_every=checkpoint_every,
                resume=checkpoint,
                system=system,
            )
        if not chosen:
            for folder in folders.values():
                remove_checkpoints(folder)


def train_seeds(
    config: TrainConfig,
    dataset: Dataset,
    root: Path,
    seeds: Sequence[int],
    init_from: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Events:
    """Trains seeds into the `seed_folders` of a directory that the user chose.

    They start from the parameters of the finished run `init_from`, if there is one.
    `options` are those of `train_runs`.
    """
    if init_from is not None:
        options["start_from"] = dict.fromkeys(seeds, Path(init_from).expanduser())
    options["chosen"] = True
    return train_runs(config, dataset, seed_folders(root, seeds), **options)


def seed_folders(root: Path, seeds: Sequence[int]) -> dict[int, Path]:
    """Returns the run directory of each seed in a directory that the user chose.

    One seed trains into `root` itself, several into `root/seed0`, `root/seed1`, ...
    """
    if len(seeds) == 1:
        return {seeds[0]: root}
    return {seed: root / f"seed{seed}" for seed in seeds}


def _lock(
    folders: Mapping[int, Path], waiting: str | None, stack: contextlib.ExitStack
) -> Iterator[str | None]:
    """Locks run directories until the stack is closed.

    Yields `waiting` and then None while another process has locked one. If `waiting` is
    None, that is an InputError.
    """
    for folder in sorted(folders.values()):
        refusal = (
            f"another process is training in {folder}; wait until it ends, or use "
            "another --run_dir"
        )
        # The processes of a job agree on a stop, but only one of them waits here.
        if waiting and jax.process_count() > 1:
            refusal = ""
        for event in itertools.chain([waiting], itertools.repeat(None)):
            try:
                stack.enter_context(hold_lock(folder / LOCK, refusal))
                break
            except InputError:
                if waiting is None:
                    raise
                yield event


def _refuse_runs(folders: Mapping[int, Path]) -> None:
    """Raises InputError if a directory already holds a run."""
    for folder in folders.values():
        if found := [name for name in FILES if (folder / name).exists()]:
            raise InputError(
                f"--run_dir={folder} already holds a run ({', '.join(found)}); give "
                "another, --resume to resume that run, or --overwrite to replace it"
            )


def plan(
    folders: Mapping[int, Path], keys: Mapping[int, RunKey], code: str | None = None
) -> tuple[Set[int], list[tuple[list[int], Checkpoint | None]]]:
    """Returns the finished seeds, and groups to train together, some of a checkpoint.

    A run of more epochs, or more patience, than its record is not finished. Checkpoints
    must be of the code with that digest, and what cannot be resumed is trained again.
    If `code` is None, any code will do, and what cannot be resumed is an InputError.
    """
    finished = set()
    for seed, folder in folders.items():
        if (record := read_record(folder)) is None:  # checkpoints have their own keys
            continue
        different = keys[seed].differences(record.key)
        if different and code is None:
            raise InputError(
                f"--resume: {folder} holds a different run: {'; '.join(different)}; "
                "give its flags and data, or another --run_dir"
            )
        if not different and is_over(keys[seed].config, record.epochs):
            finished.add(seed)
    groups: list[tuple[list[int], Checkpoint | None]] = []
    missing = dict(keys)
    for seed, folder in folders.items():
        if seed not in missing or finished >= missing.keys():
            continue  # in the group of an earlier one, or nothing is left
        found = load_checkpoint(folder, missing, code)
        if found and not finished >= set(found[0]):
            groups.append(found)
            missing = {s: key for s, key in missing.items() if s not in found[0]}
    fresh = [seed for seed in missing if seed not in finished]
    for seed in folders.keys() & fresh if code is None else ():
        folder = folders[seed]
        if (folder / RECORD).exists() or find_checkpoints(folder):
            raise InputError(
                f"--resume: the run in {folder} has no valid checkpoint to resume "
                "from; give another --run_dir, or --overwrite to replace it"
            )
    if keys[min(keys)].config.patience is not None:
        return finished, groups + [([seed], None) for seed in fresh]
    return finished, groups + ([(fresh, None)] if fresh else [])


def fit_into(
    experiment: Experiment,
    folders: Mapping[int, Path],
    keys: Mapping[int, RunKey],
    start_from: Mapping[int, Path] | None = None,
    *,
    checkpoint_every: int,
    resume: Checkpoint | None = None,
    system: str | None = None,
) -> Iterator[Started | Progress | Epoch | Result]:
    """Trains seeds together, as `fit`, and writes each run to its own directory.

    Unless resuming, existing runs there are removed first. Arguments are as for
    `train_runs` and `fit`; `keys`, by seed, are of `run_keys`.
    """
    start_variables = None
    if start_from is not None:  # they may be the runs that are replaced now
        like = variable_shapes(experiment.model, experiment.dataset.shapes.image)
        start_variables = [load_variables(start_from[seed], like) for seed in folders]
    yield Started(experiment, folders)
    code, data_dir = code_digest(), experiment.dataset.data_dir
    for number, (seed, folder) in enumerate(folders.items()):
        folder.mkdir(parents=True, exist_ok=True)
        if resume is None:
            for path in (*(folder / name for name in FILES), *folder.glob(_EVENTS)):
                path.unlink(missing_ok=True)
            remove_checkpoints(folder)
        else:  # epochs after the checkpoint are run again
            lines = [f"{json_line(epoch)}\n" for epoch in resume.histories[number]]
            write_file(folder / METRICS, "".join(lines))
        write_json(folder / CONFIG, keys[seed].config)
        if data_dir:
            write_file(folder / DATA_DIR, data_dir)
    first, *_ = folders.values()
    together = [keys[seed] for seed in folders]
    for event in fit(experiment, list(folders), start_variables, resume):
        if isinstance(event, Epoch):
            checkpoint = event.checkpoint
            last = is_over(experiment.config, checkpoint.histories[0])
            if checkpoint_every and (last or checkpoint.epoch % checkpoint_every == 0):
                save_checkpoint(first, checkpoint, together, code)
            for folder, epoch in zip(folders.values(), event.records, strict=True):
                append_jsonl(folder / METRICS, epoch)
        elif isinstance(event, Result):
            seed = event.record.config.seed
            start = keys[seed].start_sha256
            run = dataclasses.replace(event.record, system=system, start_sha256=start)
            save_params(folders[seed] / PARAMS, event.variables)
            write_json(folders[seed] / RECORD, run)
            event = Result(run, event.variables)
        yield event
