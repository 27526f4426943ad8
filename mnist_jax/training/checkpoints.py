"""Snapshots of a run on disk, from which it goes on bit for bit.

A checkpoint is one file of a run directory: states, history and seed in Flax's msgpack
form, then 32 bytes of their sha256, put in place at one stroke.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from flax import serialization

from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError
from mnist_jax.models.networks import create_model
from mnist_jax.records.files import make_folder, write_file
from mnist_jax.records.schema import EpochRecord, to_dict
from mnist_jax.training.fit import Snapshot
from mnist_jax.training.params_file import check_sizes
from mnist_jax.training.steps import TrainState, create_optimizer, init_state

FOLDER = "checkpoints"  # in a run directory


def save_snapshot(
    snapshot: Snapshot,
    folders: Mapping[int, Path],
    keep: int = 3,
    checksum: str = "",
) -> None:
    """Writes a checkpoint of each seed into its run directory.

    Args:
        snapshot: of the seeds, in the order of `folders`.
        folders: the run directory of each seed.
        keep: how many checkpoints of a run stay, the newest ones.
        checksum: of the data set.

    Raises:
        InputError: a file cannot be written; earlier ones are then still there.
    """
    leaves = _named_leaves(jax.device_get(snapshot.states))
    for place, (seed, folder) in enumerate(folders.items()):
        history = [to_dict(record) for record in snapshot.histories[place]]
        content = serialization.msgpack_serialize(
            {
                "seed": str(seed),
                "checksum": checksum,
                "history": json.dumps(history),
                "states": {name: leaf[place] for name, leaf in leaves.items()},
            }
        )
        make_folder(folder / FOLDER)
        path = _path(folder, snapshot.epoch)
        write_file(path, content + hashlib.sha256(content).digest())
        for epoch in sorted(_epochs(folder))[:-keep]:
            _path(folder, epoch).unlink(missing_ok=True)


def load_snapshot(
    folders: Mapping[int, Path], config: TrainConfig, checksum: str = ""
) -> Snapshot | None:
    """Returns the newest sound checkpoint that all seeds have; None if they have none.

    Unsound ones are named in a warning.

    Args:
        folders: the run directory of each seed.
        config: of the runs, which tells the shapes of their states.
        checksum: of the data set, which `--dataset=auto` leaves open; empty for any.

    Raises:
        InputError: there are checkpoints, but none is sound.
    """
    model = create_model(config)
    like = jax.eval_shape(
        lambda: init_state(model, create_optimizer(config, 3), jax.random.key(0))
    )
    common = set.intersection(*(_epochs(folder) for folder in folders.values()))
    for epoch in sorted(common, reverse=True):
        parts = []
        for seed, folder in folders.items():
            try:
                parts.append(_load(folder, epoch, seed, like, checksum))
            except (OSError, ValueError) as error:
                path = _path(folder, epoch)
                logging.warning("%s is not used: %s", path, error)
        if len(parts) == len(folders):
            states = jax.tree.map(
                lambda *leaves: np.stack(leaves), *[state for state, _ in parts]
            )
            return Snapshot(states, [history for _, history in parts])
    if common:
        names = ", ".join(str(folder / FOLDER) for folder in folders.values())
        raise InputError(
            f"no checkpoint in {names} is sound; start anew with --overwrite in place "
            "of --resume"
        )
    return None


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of a run directory."""
    for epoch in _epochs(folder):
        _path(folder, epoch).unlink(missing_ok=True)


def _path(folder: Path, epoch: int) -> Path:
    return folder / FOLDER / f"epoch{epoch:05d}.msgpack"


def _epochs(folder: Path) -> set[int]:
    """Returns after which epochs a run directory holds a checkpoint."""
    paths = (folder / FOLDER).glob("epoch*.msgpack")
    words = [path.stem.removeprefix("epoch") for path in paths]
    return {int(word) for word in words if word.isascii() and word.isdigit()}


def _named_leaves(tree: Any) -> dict[str, np.ndarray]:
    """Returns a tree's arrays by their paths."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _load(
    folder: Path, epoch: int, seed: int, like: TrainState, checksum: str
) -> tuple[TrainState, list[EpochRecord]]:
    """Reads a checkpoint of one seed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or of another network, seed, epoch or data set.
    """
    content = _path(folder, epoch).read_bytes()
    content, digest = content[:-32], content[-32:]
    if hashlib.sha256(content).digest() != digest:
        raise ValueError("it is damaged, its sha256 is not the one it ends with")
    try:
        check_sizes(content)
        values = serialization.msgpack_restore(content)
        found_seed, leaves = int(values["seed"]), dict(values["states"])
        found_checksum = values.get("checksum") or checksum
        history = [EpochRecord(**fields) for fields in json.loads(values["history"])]
    except Exception as error:  # msgpack's own errors are of many unrelated types
        raise ValueError(f"it is of another version ({error})") from error
    if found_seed != seed:
        raise ValueError(f"it is of seed {found_seed}, not {seed}")
    if checksum and found_checksum != checksum:
        raise ValueError(f"it is of other data, sha256 {found_checksum}")
    if len(history) != epoch:
        raise ValueError(f"it is of epoch {len(history)}, not {epoch}")
    wanted = jax.tree.leaves_with_path(like)
    names = [jax.tree_util.keystr(place) for place, _ in wanted]
    for name, (_, leaf) in zip(names, wanted, strict=True):
        shape = np.shape(leaves[name]) if name in leaves else "missing"
        if shape != leaf.shape:
            raise ValueError(
                f"it is of another network, {name} is {shape} in place of {leaf.shape}"
            )
    ordered: Sequence[Any] = [leaves[name] for name in names]
    return jax.tree.unflatten(jax.tree.structure(like), ordered), history
