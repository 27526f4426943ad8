"""Saves and loads parameters and checkpoints in Flax's msgpack format.

A checkpoint is one file for all seeds that are trained together, in the `checkpoints`
folder of the first one's run directory. It holds everything that the rest of the runs
depends on, so that they resume bit for bit. Every file is verified by its sha256.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
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
from mnist_jax.training.steps import TrainState, init_states

FOLDER = "checkpoints"  # in a run directory
KEEP = 3  # number of newest checkpoints to keep


class Checkpoint(NamedTuple):
    """Everything that the rest of runs trained together depends on, after an epoch."""

    states: TrainState  # of all seeds, stacked
    histories: list[list[EpochRecord]]  # by seed, then by epoch
    best_params: Any = None  # of all seeds, stacked; with `patience`

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.histories[0])


class _Saved(NamedTuple):
    """The arrays of a checkpoint; leaves are saved by their names here."""

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


def save_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    keys: Sequence[RunKey],
    code: str,
    keep: int = KEEP,
) -> None:
    """Writes a checkpoint of seeds trained together, keeping the newest `keep`.

    Args:
        folder: run directory of the first seed.
        checkpoint: what to write.
        keys: of the seeds, in the order of their states.
        code: `code_digest`.
        keep: number of newest checkpoints to keep.
    """
    states = checkpoint.states
    saved = _Saved(states.params, states.opt_state, checkpoint.best_params)
    content = serialization.msgpack_serialize(
        {
            "keys": [json_line(key) for key in keys],
            "code": code,
            "histories": json.dumps(
                [[vars(epoch) for epoch in epochs] for epochs in checkpoint.histories]
            ),
            "states": named_leaves(jax.device_get(saved)),
        }
    )
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    write_file(_path(folder, checkpoint.epoch), add_checksum(content))
    for epoch in sorted(_epochs(folder))[:-keep]:
        _path(folder, epoch).unlink(missing_ok=True)


def load_checkpoint(
    folder: Path, keys: Mapping[int, RunKey], shapes: Shapes, code: str | None = None
) -> tuple[list[int], Checkpoint] | None:
    """Loads the newest valid checkpoint in a run directory, or None if there is none.

    Damaged checkpoints and those of other runs, or of other code unless `code` is None,
    are skipped with a warning.

    Returns:
        The seeds that were trained together, without those that `keys` lacks, and
        their states.

    Raises:
        InputError: there are checkpoints, but none is valid.
    """
    reason = ""
    for epoch in sorted(_epochs(folder), reverse=True):
        path = _path(folder, epoch)
        try:
            return _load(path, epoch, keys, shapes, code)
        except (OSError, ValueError, InputError) as error:
            reason = reason or str(error)
            logging.warning("%s is not used: %s", path, error)
    if reason:
        raise InputError(
            f"no checkpoint in {folder / FOLDER} is valid: {reason}; train again with "
            "--overwrite instead of --resume"
        )
    return None


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of a run directory."""
    for epoch in _epochs(folder):
        _path(folder, epoch).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is missing, or holds other files
        (folder / FOLDER).rmdir()


def _path(folder: Path, epoch: int) -> Path:
    return folder / FOLDER / f"epoch{epoch:05d}.msgpack"


def _epochs(folder: Path) -> set[int]:
    """Returns the epochs that have a checkpoint in a run directory."""
    paths = (folder / FOLDER).glob("epoch*.msgpack")
    numbers = [path.stem.removeprefix("epoch") for path in paths]
    return {int(text) for text in numbers if text.isascii() and text.isdigit()}


def _load(
    path: Path,
    epoch: int,
    keys: Mapping[int, RunKey],
    shapes: Shapes,
    code: str | None,
) -> tuple[list[int], Checkpoint]:
    """Loads a checkpoint; raises ValueError as `load_checkpoint` says."""
    content = bytes(verify_checksum(path.read_bytes()))
    try:
        values = serialization.msgpack_restore(content)
        found = [decode(RunKey, json.loads(key)) for key in values["keys"]]
        leaves, found_code = dict(values["states"]), values["code"]
        histories = decode(list[list[EpochRecord]], json.loads(values["histories"]))
    except Exception as error:  # msgpack raises unrelated exception types
        raise ValueError(f"it has another format ({error})") from error
    wanted = [i for i, key in enumerate(found) if key.config.seed in keys]
    seeds = [found[i].config.seed for i in wanted]
    for i, seed in zip(wanted, seeds, strict=True):
        if different := keys[seed].differences(found[i]):
            raise ValueError(f"it is from another run: {'; '.join(different)}")
    if not seeds:
        raise ValueError("it is from other seeds")
    if code not in (None, found_code):
        raise ValueError("it is from another version of the code")
    histories = [histories[i] for i in wanted]
    if len(histories[0]) != epoch:
        raise ValueError(f"it is from epoch {len(histories[0])}, not {epoch}")
    config = keys[seeds[0]].config  # equal but for the seed
    init = partial(
        init_states,
        create_model(config, shapes),
        create_optimizer(config, 3),
        image_shape=shapes.image,
    )
    state = jax.eval_shape(init, jax.random.split(jax.random.key(0), len(seeds)))
    best_params = None if config.patience is None else state.params
    like = _Saved(state.params, state.opt_state, best_params)
    leaves = {name: np.take(leaf, wanted, axis=0) for name, leaf in leaves.items()}
    saved = as_params(path, leaves, like)
    states = TrainState(saved.params, saved.opt_state)
    return seeds, Checkpoint(states, histories, saved.best_params)
