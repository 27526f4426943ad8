"""Saves and loads parameters and checkpoints in Flax's msgpack format.

A checkpoint is one file in the `checkpoints` folder of a run directory. It holds
everything that the rest of the run depends on, so that it resumes bit for bit. Every
file is verified by its sha256.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from flax import serialization
from flax.traverse_util import flatten_dict, unflatten_dict

from mnist_jax.data.types import Shapes
from mnist_jax.errors import InputError
from mnist_jax.models.networks import create_model
from mnist_jax.records.files import (
    add_checksum,
    verify_checksum,
    write_file,
)
from mnist_jax.records.schema import EpochRecord, RunKey, decode, json_line
from mnist_jax.training.optimizers import create_optimizer
from mnist_jax.training.steps import TrainState, init_state

FOLDER = "checkpoints"  # in a run directory
_SEEDS = "seeds.json"  # in that folder: the seeds trained together
KEEP = 3  # number of newest checkpoints to keep


class Checkpoint(NamedTuple):
    """Everything that the rest of a run depends on, after an epoch."""

    states: TrainState  # of all seeds, stacked
    histories: list[list[EpochRecord]]  # by seed, then by epoch
    best_params: Any = None  # of all seeds, stacked; with `patience`

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.histories[0])


class _Saved(NamedTuple):
    """The arrays of one seed's checkpoint; leaves are saved by their names here."""

    params: Any
    opt_state: Any
    best_params: Any  # None, without leaves, unless there is `patience`


def params_sha256(params: Any) -> str:
    """Returns the sha256 of the file that `save_params` writes."""
    return hashlib.sha256(_to_bytes(params)).hexdigest()


def save_params(path: Path, params: Any) -> None:
    """Writes parameters to a file atomically."""
    write_file(path, _to_bytes(params))


def _to_bytes(params: Any) -> bytes:
    leaves = named_leaves(jax.device_get(params))
    return serialization.msgpack_serialize(unflatten_dict(leaves, sep="/"))


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of any tree by their paths, such as `Dense_0/kernel`."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def check_saving(like: Any) -> None:
    """Saves and loads zeros like these parameters, before training depends on it."""
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    saved = serialization.msgpack_restore(_to_bytes(zeros))
    as_params(Path("parameters"), flatten_dict(saved, sep="/"), like)


def load_params(path: Path, like: Any, sha256: str) -> Any:
    """Loads parameters for a network.

    Args:
        path: file written by `save_params`.
        like: the network's parameters, or their shapes.
        sha256: expected sha256, as returned by `params_sha256`.
    """
    content = read_params(path)
    if (found_sha256 := hashlib.sha256(content).hexdigest()) != sha256:
        raise InputError(
            f"{path} is damaged: its {len(content)} bytes have the sha256 "
            f"{found_sha256}, but the run's record has {sha256}; train again"
        )
    try:
        params = serialization.msgpack_restore(content)
        found = flatten_dict(params, sep="/")
    except Exception as error:  # msgpack raises unrelated exception types
        raise InputError(f"{path} is damaged ({error}); train again") from error
    return as_params(path, found, like)


def read_params(path: Path) -> bytes:
    """Returns the content of a file with parameters."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; give the directory of a finished "
            "run"
        ) from error


def as_params(path: Path, found: Mapping[str, Any], like: Any) -> Any:
    """Returns the arrays of a file as a network's parameters.

    Args:
        path: the file, for the message.
        found: its arrays by name, such as `Dense_0/kernel`.
        like: the network's parameters, or their shapes.

    Raises:
        InputError: an array is missing, unknown or of another shape or dtype.
    """
    expected = named_leaves(like)
    for name in sorted(expected.keys() | found.keys()):
        here, there = (
            f"{leaves[name].dtype}{list(leaves[name].shape)}"
            if name in leaves
            else "missing"
            for leaves in (expected, found)
        )
        if here != there:
            raise InputError(
                f"{path} does not fit this network: {name} is {here} here and {there} "
                "in the file; use the flags and JAX's settings of the run that wrote it"
            )
    return jax.tree.unflatten(jax.tree.structure(like), [found[n] for n in expected])


def begin_checkpoints(folders: Mapping[int, Path]) -> None:
    """Writes to each run directory which seeds are trained together."""
    for folder in folders.values():
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        write_file(folder / FOLDER / _SEEDS, json_line(list(folders)))


def seeds_together(folder: Path) -> list[int]:
    """Returns the seeds that `begin_checkpoints` wrote to a run directory, if any."""
    try:
        return decode(list[int], json.loads((folder / FOLDER / _SEEDS).read_bytes()))
    except (OSError, ValueError):
        return []


def save_checkpoint(
    checkpoint: Checkpoint,
    folders: Mapping[int, Path],
    keys: Mapping[int, RunKey],
    code: str,
    keep: int = KEEP,
) -> None:
    """Writes each seed's checkpoint to its run directory, keeping the newest `keep`."""
    states = checkpoint.states
    saved = _Saved(states.params, states.opt_state, checkpoint.best_params)
    leaves = named_leaves(jax.device_get(saved))
    for index, (seed, folder) in enumerate(folders.items()):
        content = serialization.msgpack_serialize(
            {
                "key": json_line(keys[seed]),
                "code": code,
                "history": json.dumps(
                    [e.__dict__ for e in checkpoint.histories[index]]
                ),
                "states": {name: np.asarray(v[index]) for name, v in leaves.items()},
            }
        )
        (folder / FOLDER).mkdir(parents=True, exist_ok=True)
        write_file(_path(folder, checkpoint.epoch), add_checksum(content))
    # Only now: after a kill in between, all seeds still share an earlier checkpoint.
    for folder in folders.values():
        for epoch in sorted(_epochs(folder))[:-keep]:
            _path(folder, epoch).unlink(missing_ok=True)


def load_checkpoint(
    folders: Mapping[int, Path],
    keys: Mapping[int, RunKey],
    shapes: Shapes,
    code: str | None = None,
) -> Checkpoint | None:
    """Loads the newest valid checkpoint that all seeds have, or None if none exists.

    Damaged checkpoints and those of other runs, or of other code unless `code` is None,
    are skipped with a warning.

    Raises:
        InputError: there are checkpoints, but none is valid.
    """
    config = keys[next(iter(folders))].config  # equal but for the seed
    model, tx = create_model(config, shapes), create_optimizer(config, 3)
    state = jax.eval_shape(
        lambda: init_state(model, tx, jax.random.key(0), shapes.image)
    )
    best_params = None if config.patience is None else state.params
    like = _Saved(state.params, state.opt_state, best_params)
    common = set.intersection(*(_epochs(folder) for folder in folders.values()))
    reason = ""
    for epoch in sorted(common, reverse=True):
        loaded = []
        for seed, folder in folders.items():
            try:
                loaded.append(_load(folder, epoch, keys[seed], code, like))
            except (OSError, ValueError) as error:
                path, reason = _path(folder, epoch), reason or str(error)
                logging.warning("%s is not used: %s", path, error)
        if len(loaded) == len(folders):
            saved = jax.tree.map(
                lambda *leaves: np.stack(leaves), *[saved for saved, _ in loaded]
            )
            states = TrainState(saved.params, saved.opt_state)
            histories = [history for _, history in loaded]
            return Checkpoint(states, histories, saved.best_params)
    if common:
        names = ", ".join(str(folder / FOLDER) for folder in folders.values())
        raise InputError(
            f"no checkpoint in {names} is valid: {reason}; train again with "
            "--overwrite instead of --resume"
        )
    return None


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of a run directory."""
    for epoch in _epochs(folder):
        _path(folder, epoch).unlink(missing_ok=True)
    if (folder / FOLDER).is_dir():
        (folder / FOLDER / _SEEDS).unlink(missing_ok=True)
        if not any((folder / FOLDER).iterdir()):
            (folder / FOLDER).rmdir()


def has_checkpoints(folder: Path) -> bool:
    """Returns whether a run directory contains checkpoints, valid or not."""
    return bool(_epochs(folder))


def _path(folder: Path, epoch: int) -> Path:
    return folder / FOLDER / f"epoch{epoch:05d}.msgpack"


def _epochs(folder: Path) -> set[int]:
    """Returns the epochs that have a checkpoint in a run directory."""
    paths = (folder / FOLDER).glob("epoch*.msgpack")
    numbers = [path.stem.removeprefix("epoch") for path in paths]
    return {int(text) for text in numbers if text.isascii() and text.isdigit()}


def _load(
    folder: Path, epoch: int, key: RunKey, code: str | None, like: _Saved
) -> tuple[_Saved, list[EpochRecord]]:
    """Loads the checkpoint of one seed.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or from another run, epoch, code or network.
    """
    content = bytes(verify_checksum(_path(folder, epoch).read_bytes()))
    try:
        values = serialization.msgpack_restore(content)
        found = decode(RunKey, json.loads(values["key"]))
        leaves, found_code = dict(values["states"]), values["code"]
        history = decode(list[EpochRecord], json.loads(values["history"]))
    except Exception as error:  # msgpack raises unrelated exception types
        raise ValueError(f"it has another format ({error})") from error
    if different := key.differences(found):
        raise ValueError(f"it is from another run: {'; '.join(different)}")
    if code not in (None, found_code):
        raise ValueError("it is from another version of the code")
    if len(history) != epoch:
        raise ValueError(f"it is from epoch {len(history)}, not {epoch}")
    return as_params(_path(folder, epoch), leaves, like), history
