"""Saves and loads variables of networks and checkpoints in Flax's msgpack format.

A checkpoint is one file for all seeds that are trained together, in the `checkpoints`
folder of the first one's run directory. It holds everything that the rest of the runs
depends on, so that they resume bit for bit. Every file is verified by its sha256.
"""

import hashlib
import json
import shutil
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
from mnist_jax.records.files import add_checksum, verify_checksum, write_file
from mnist_jax.records.schema import EpochRecord, RunKey, decode, json_line
from mnist_jax.training.optimizers import create_optimizer
from mnist_jax.training.steps import TrainState, init_state

FOLDER = "checkpoints"  # in a run directory
KEEP = 3  # number of newest checkpoints to keep


class Checkpoint(NamedTuple):
    """Everything that the rest of runs trained together depends on, after an epoch."""

    states: TrainState  # of all seeds, stacked
    histories: list[list[EpochRecord]]  # by seed, then by epoch
    best: Any = None  # variables of all seeds, stacked; with `patience`

    @property
    def epoch(self) -> int:
        """The number of finished epochs."""
        return len(self.histories[0])


def params_sha256(variables: Any) -> str:
    """Returns the sha256 of the file that `save_params` writes."""
    return hashlib.sha256(_to_bytes(variables)).hexdigest()


def save_params(path: Path, variables: Any) -> None:
    """Writes the variables of a network to a file atomically."""
    write_file(path, _to_bytes(variables))


def _to_bytes(variables: Any) -> bytes:
    leaves = named_leaves(jax.device_get(variables))
    names = sorted(leaves, key=lambda name: name.split("/"))
    tree = unflatten_dict({name: leaves[name] for name in names}, sep="/")
    return serialization.msgpack_serialize(tree)


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of any tree by their paths.

    Those of a network are named by layer, such as `Dense_0/kernel`, and those of its
    other collections than `params` by collection and layer.
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/").removeprefix(
            "params/"
        ): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def load_params(path: Path, like: Any, sha256: str) -> Any:
    """Loads variables that `save_params` wrote and `params_sha256` identified.

    `like` has the network's variables, or their shapes.
    """
    content = path.read_bytes()
    if (found_sha256 := hashlib.sha256(content).hexdigest()) != sha256:
        raise InputError(
            f"{path} is damaged: its {len(content)} bytes have the sha256 "
            f"{found_sha256}, but the run's record has {sha256}; train again"
        )
    found = flatten_dict(serialization.msgpack_restore(content), sep="/")
    return from_leaves(path, found, like)


def from_leaves(path: Path, found: Mapping[str, Any], like: Any) -> Any:
    """Returns the `named_leaves` of a file as a tree like another."""
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

    `folder` is the run directory of the first seed, `code` is `code_digest`, and `keys`
    are in the order of the states.
    """
    histories = [[vars(epoch) for epoch in epochs] for epochs in checkpoint.histories]
    arrays = jax.device_get(checkpoint._replace(histories=[]))
    content = serialization.msgpack_serialize(
        {
            "keys": [json_line(key) for key in keys],
            "code": code,
            "histories": json.dumps(histories),
            "arrays": named_leaves(arrays),
        }
    )
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    path = folder / FOLDER / f"epoch{checkpoint.epoch:05d}.msgpack"
    write_file(path, add_checksum(content))
    for path in _paths(folder)[:-keep]:
        path.unlink(missing_ok=True)


def load_checkpoint(
    folder: Path, keys: Mapping[int, RunKey], shapes: Shapes, code: str | None = None
) -> tuple[list[int], Checkpoint] | None:
    """Loads the newest valid checkpoint in a run directory, or None if there is none.

    Damaged checkpoints and those of other runs, or of other code unless `code` is None,
    are skipped with a warning; if none is left, that is an InputError. The seeds that
    were trained together come with their states, without those that `keys` lacks.
    """
    reason = ""
    for path in reversed(_paths(folder)):
        try:
            return _load(path, keys, shapes, code)
        except (ValueError, InputError) as error:
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
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _paths(folder: Path) -> list[Path]:
    """Returns the checkpoints in a run directory, oldest first."""
    return sorted((folder / FOLDER).glob("epoch*.msgpack"))


def _load(
    path: Path, keys: Mapping[int, RunKey], shapes: Shapes, code: str | None
) -> tuple[list[int], Checkpoint]:
    """Loads a checkpoint; raises ValueError as `load_checkpoint` says."""
    values = serialization.msgpack_restore(bytes(verify_checksum(path.read_bytes())))
    found = [decode(RunKey, json.loads(key)) for key in values["keys"]]
    wanted = [i for i, key in enumerate(found) if key.config.seed in keys]
    seeds = [found[i].config.seed for i in wanted]
    for i, seed in zip(wanted, seeds, strict=True):
        if different := keys[seed].differences(found[i]):
            raise ValueError(f"it is from another run: {'; '.join(different)}")
    if not seeds:
        raise ValueError("it is from other seeds")
    if code not in (None, values["code"]):
        raise ValueError("it is from another version of the code")
    histories = decode(list[list[EpochRecord]], json.loads(values["histories"]))
    config = keys[seeds[0]].config  # equal but for the seed
    model, tx = create_model(config, shapes), create_optimizer(config, 3)
    init = jax.vmap(partial(init_state, model, tx, image_shape=shapes.image))
    states = jax.eval_shape(init, jax.random.split(jax.random.key(0), len(seeds)))
    best = None if config.patience is None else states.variables
    arrays = {n: np.take(leaf, wanted, axis=0) for n, leaf in values["arrays"].items()}
    checkpoint = from_leaves(path, arrays, Checkpoint(states, [], best))
    return seeds, checkpoint._replace(histories=[histories[i] for i in wanted])
