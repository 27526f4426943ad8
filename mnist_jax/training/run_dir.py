"""A run directory: what a run leaves behind, and how to get it back."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

from mnist_jax.config import TrainConfig, config_from_dict, config_to_dict
from mnist_jax.errors import InputError
from mnist_jax.models.networks import create_model, init_params
from mnist_jax.records.files import make_folder, write_file
from mnist_jax.records.schema import (
    EpochRecord,
    RunRecord,
    append_jsonl,
    missing_fields,
    to_dict,
    write_json,
)
from mnist_jax.training.checkpoints import (
    load_snapshot,
    remove_checkpoints,
    save_snapshot,
)
from mnist_jax.training.experiment import Experiment
from mnist_jax.training.fit import Progress, Snapshot, fit
from mnist_jax.training.params_file import load_params, save_params

CONFIG, METRICS, RECORD, PARAMS = FILES = (
    "config.json",
    "metrics.jsonl",
    "record.json",
    "params.msgpack",
)
_EVENTS = "events.out.tfevents.*"  # of `tensorboard`, which would draw both runs as one
# What the readers of a finished run's record ask for.
_NEEDED = (
    *("config.model", "config.seed", "dataset", "epochs", "total_seconds"),
    "params_sha256",
)


def check_run_dir(folder: Path, overwrite: bool) -> None:
    """Makes sure that a run may be written into a folder, before any work is done.

    Raises:
        InputError: it holds a run and may not be overwritten, or cannot be made.
    """
    held = [name for name in FILES if (folder / name).exists()]
    if held and not overwrite:
        raise InputError(
            f"--run_dir={folder} already holds a run ({', '.join(held)}); give another "
            "directory, or --overwrite to replace that run"
        )
    make_folder(folder)


def fit_into(
    experiment: Experiment,
    folders: Mapping[int, Path],
    on_epoch: Callable[[Sequence[EpochRecord]], None],
    start_params: Sequence[Any] | None = None,
    *,
    on_part: Callable[[Progress], None] | None = None,
    checkpoint_every: int = 0,
    checkpoint_folders: Mapping[int, Path] | None = None,
    keep: int = 3,
    resume: Snapshot | None = None,
) -> list[RunRecord]:
    """Trains seeds together and writes what each leaves behind into its own folder.

    That is its config, a line per epoch, its record and parameters. An earlier run in a
    folder is removed first: ask `check_run_dir` before.

    Args:
        experiment: what `prepare` returned.
        folders: where the run of each seed goes.
        on_epoch: as for `fit`.
        start_params: as for `fit`.
        on_part: as for `fit`.
        checkpoint_every: epochs from one checkpoint to the next; 0 writes none.
        checkpoint_folders: where those of each seed go, instead of `folders`.
        keep: how many checkpoints stay.
        resume: a snapshot of these runs, to go on from.
    """
    for place, (seed, folder) in enumerate(folders.items()):
        make_folder(folder)
        if resume is None:
            for path in (*(folder / name for name in FILES), *folder.glob(_EVENTS)):
                path.unlink(missing_ok=True)
            remove_checkpoints(folder)
        else:
            # Epochs after the snapshot are run again.
            lines = map(json.dumps, map(to_dict, resume.histories[place]))
            write_file(folder / METRICS, "".join(f"{line}\n" for line in lines))
        config = dataclasses.replace(experiment.config, seed=seed)
        write_json(folder / CONFIG, config_to_dict(config))

    def save(snapshot: Snapshot) -> None:
        last = snapshot.epoch == experiment.config.epochs
        if checkpoint_every and (last or snapshot.epoch % checkpoint_every == 0):
            checksum = experiment.dataset.checksum
            save_snapshot(snapshot, checkpoint_folders or folders, keep, checksum)

    def write_and_tell(epochs: Sequence[EpochRecord]) -> None:
        for folder, epoch in zip(folders.values(), epochs, strict=True):
            append_jsonl(folder / METRICS, to_dict(epoch))
        on_epoch(epochs)

    runs = fit(
        experiment,
        list(folders),
        write_and_tell,
        start_params,
        on_part=on_part,
        on_snapshot=save,
        resume=resume,
    )
    for folder, (record, params) in zip(folders.values(), runs, strict=True):
        save_params(folder / PARAMS, params)
        write_json(folder / RECORD, to_dict(record))
    return [record for record, _ in runs]


def resume_snapshot(
    folders: Mapping[int, Path], config: TrainConfig, checksum: str = ""
) -> tuple[bool, Snapshot | None]:
    """Returns whether the runs of a config are finished, else from where to go on.

    More epochs than before may be asked for.

    Raises:
        InputError: a folder holds a run of another config; its fields are named. Or its
            checkpoints are all unsound, or of data with another checksum.
    """
    finished = True
    for seed, folder in folders.items():
        if not (folder / CONFIG).exists():
            finished = False
            continue
        before = config_to_dict(config_from_dict(_read_json(folder / CONFIG)))
        now = config_to_dict(dataclasses.replace(config, seed=seed))
        fewer = now["epochs"] < before["epochs"]
        # A run that was prolonged and then stopped still has its earlier record.
        finished = finished and (folder / RECORD).exists()
        finished = finished and read_record(folder)["config"] == now
        different = [
            f"--{name} was {before[name]}, is {now[name]}"
            for name in now
            if now[name] != before[name] and (name != "epochs" or fewer)
        ]
        if different:
            raise InputError(
                f"--resume: the run in {folder} has another config: "
                f"{'; '.join(different)}; give its flags, or another --run_dir"
            )
    if finished:
        return True, None
    return False, load_snapshot(folders, config, checksum)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; give the --run_dir of a run that "
            "ended"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); train again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged (no JSON object); train again")
    return value


def read_record(folder: Path) -> dict[str, Any]:
    """Returns the record of a finished run as plain values.

    Raises:
        InputError: there is none, or it is damaged or of another version.
    """
    record = _read_json(folder / RECORD)
    if missing := missing_fields(record, _NEEDED):
        raise InputError(
            f"{folder / RECORD} lacks {', '.join(missing)}: it was written by another "
            "version of mnist_jax; train again or use that version"
        )
    return record


def read_model(folder: Path) -> tuple[TrainConfig, nn.Module, Any]:
    """Returns config, network and trained parameters of a finished run.

    Raises:
        InputError: a file is missing, damaged or of another version.
    """
    config = config_from_dict(_read_json(folder / CONFIG))
    model = create_model(config)
    return config, model, read_params(folder, model)


def read_params(folder: Path, model: nn.Module) -> Any:
    """Returns the trained parameters of a finished run, for a network.

    Raises:
        InputError: there are none, they are not those of the run's record, or do not
            fit the network: the leaf is named.
    """
    sha256 = read_record(folder)["params_sha256"]
    like = jax.eval_shape(lambda: init_params(model, jax.random.key(0)))
    return load_params(folder / PARAMS, like, sha256)
