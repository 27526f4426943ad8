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

from mnist_jax.errors import InputError
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import EpochRecord, RunKey, decode, json_line

FOLDER = "checkpoints"  # in a run directory
KEEP = 3  # number of newest checkpoints to keep


class Checkpoint(NamedTuple):
    """Everything that the rest of runs trained together depends on, after an epoch."""

    arrays: dict[str, Any]  # `named_leaves` of what `fit` trains, with all its seeds
    histories: list[list[EpochRecord]]  # by seed, then by epoch

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


def leaf_names(tree: Any) -> list[str]:
    """Returns the paths of the leaves of a tree, such as `params/Dense_0/kernel`."""
    name = partial(jax.tree_util.keystr, simple=True, separator="/")
    return [name(path) for path, _ in jax.tree.leaves_with_path(tree)]


def named_leaves(tree: Any) -> dict[str, Any]:
    """Returns the leaves of any tree by their paths.

    Those of a network are named by layer, such as `Dense_0/kernel`, and those of its
    other collections than `params` by collection and layer.
    """
    names = [name.removeprefix("params/") for name in leaf_names(tree)]
    return dict(zip(names, jax.tree.leaves(tree), strict=True))


def load_params(path: Path, like: Any, sha256: str) -> Any:
    """Loads variables that `params_sha256` identified.

    `like` has the network's variables, or their shapes.
    """
    content = path.read_bytes()
    if (found_sha256 := hashlib.sha256(content).hexdigest()) != sha256:
        raise InputError(
            f"{path} is damaged: its arrays have the sha256 {found_sha256}, but the "
            f"run's record has {sha256}; train the run again"
        )
    found = flatten_dict(serialization.msgpack_restore(content), sep="/")
    return from_leaves(path, found, like)


def from_leaves(source: Any, found: Mapping[str, Any], like: Any) -> Any:
    """Returns the `named_leaves` of a file, named in errors, as a tree like another."""
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
                f"{source} does not fit this network: {name} is {here} here and "
                f"{there} there; use the flags and JAX's settings of the run that "
                "wrote it"
            )
    return jax.tree.unflatten(jax.tree.structure(like), [found[n] for n in expected])


def save_checkpoint(
    folder: Path, checkpoint: Checkpoint, keys: Sequence[RunKey], code: str
) -> None:
    """Writes a checkpoint of seeds trained together, keeping the newest `KEEP`.

    `folder` is the run directory of the first seed, `code` is `code_digest`, and `keys`
    are in the order of the states.
    """
    runs = {"keys": keys, "code": code, "histories": checkpoint.histories}
    content = serialization.msgpack_serialize(
        {"runs": json_line(runs), "arrays": jax.device_get(checkpoint.arrays)}
    )
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    path = folder / FOLDER / f"epoch{checkpoint.epoch:05d}.msgpack"
    write_file(path, content + hashlib.sha256(content).digest())
    for path in find_checkpoints(folder)[:-KEEP]:
        path.unlink(missing_ok=True)


def load_checkpoint(
    folder: Path, keys: Mapping[int, RunKey], code: str | None = None
) -> tuple[list[int], Checkpoint] | None:
    """Loads the newest valid checkpoint in a run directory, or None if there is none.

    Damaged checkpoints and those of other runs, or of other code unless `code` is None,
    are skipped with a warning. The seeds that were trained together come with their
    states, without those that `keys` lacks.
    """
    for path in reversed(find_checkpoints(folder)):
        try:
            return _load(path, keys, code)
        except ValueError as error:
            logging.warning("%s is not used: %s", path, error)
    return None


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of a run directory."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def find_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in a run directory, oldest first."""
    return sorted((folder / FOLDER).glob("epoch*.msgpack"))


def _load(
    path: Path, keys: Mapping[int, RunKey], code: str | None
) -> tuple[list[int], Checkpoint]:
    """Loads a checkpoint; raises ValueError as `load_checkpoint` says."""
    data = path.read_bytes()
    content, digest = data[:-32], data[-32:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("it is damaged (its sha256 does not match its content)")
    values = serialization.msgpack_restore(content)
    runs = json.loads(values["runs"])
    found = decode(list[RunKey], runs["keys"])
    wanted = [i for i, key in enumerate(found) if key.config.seed in keys]
    seeds = [found[i].config.seed for i in wanted]
    for i, seed in zip(wanted, seeds, strict=True):
        if different := keys[seed].differences(found[i]):
            raise ValueError(f"it is from another run: {'; '.join(different)}")
    if not seeds:
        raise ValueError("it is from other seeds")
    if code not in (None, runs["code"]):
        raise ValueError("it is from another version of the code")
    histories = decode(list[list[EpochRecord]], runs["histories"])
    arrays = {n: np.take(leaf, wanted, axis=0) for n, leaf in values["arrays"].items()}
    return seeds, Checkpoint(arrays, [histories[i] for i in wanted])
