"""Parameters and checkpoints on disk, in Flax's msgpack form, verified by a sha256.

A checkpoint is one file in a run directory's folder `checkpoints`: all that the rest of
a run depends on, so that it resumes bit for bit.
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
from flax.traverse_util import flatten_dict

from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError
from mnist_jax.models.networks import create_model
from mnist_jax.records.files import (
    add_checksum,
    make_folder,
    verify_checksum,
    write_file,
)
from mnist_jax.records.schema import EpochRecord, decode, json_line
from mnist_jax.training.optimizers import create_optimizer
from mnist_jax.training.steps import TrainState, init_state

FOLDER = "checkpoints"  # in a run directory
_SEEDS = "seeds.json"  # in that folder: the seeds that are trained together
KEEP = 3  # checkpoints that stay, the newest ones


class Checkpoint(NamedTuple):
    """All that the rest of a run depends on, between two epochs."""

    states: TrainState  # of each seed, stacked
    histories: list[list[EpochRecord]]  # by seed, then by epoch

    @property
    def epoch(self) -> int:
        """Epochs that are done."""
        return len(self.histories[0])


class Origin(NamedTuple):
    """What a checkpoint is only valid for; an empty text is not compared."""

    checksum: str = ""  # of the data set, which `--dataset=auto` leaves open
    code: str = ""  # see `code_digest`


ANY_ORIGIN = Origin()


def params_sha256(params: Any) -> str:
    """Returns the sha256 of the file that `save_params` writes for parameters."""
    return hashlib.sha256(_to_bytes(params)).hexdigest()


def save_params(path: Path, params: Any) -> None:
    """Writes parameters whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_file(path, _to_bytes(params))


def _to_bytes(params: Any) -> bytes:
    return serialization.to_bytes(jax.device_get(params))


def load_params(path: Path, like: Any, sha256: str) -> Any:
    """Reads parameters for a network.

    Args:
        path: what `save_params` wrote.
        like: the network's own parameters, or their shapes.
        sha256: what `params_sha256` gave for them.

    Raises:
        InputError: the file is missing, damaged or of another network.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; give the directory of a run that "
            "ended"
        ) from error
    if (found_sha256 := hashlib.sha256(content).hexdigest()) != sha256:
        raise InputError(
            f"{path} is damaged: its {len(content)} bytes have the sha256 "
            f"{found_sha256}, and the run's record names {sha256}; train again"
        )
    try:
        params = serialization.msgpack_restore(content)
        found = {"/".join(key): leaf for key, leaf in flatten_dict(params).items()}
        wanted = {"/".join(key): leaf for key, leaf in flatten_dict(like).items()}
        different = _different_leaf(wanted, found)
    except Exception as error:  # msgpack's own errors are of many unrelated types
        raise InputError(f"{path} is damaged ({error}); train again") from error
    if different is not None:
        name, here, there = different
        raise InputError(
            f"{path} does not fit this network: {name} is {here} here and {there} in "
            "the file; use the flags of the run that wrote it"
        )
    return params


def _different_leaf(
    wanted: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[Any, ...] | None:
    """Returns the first leaf of other shapes, by name, with its shape in both trees."""
    for name in sorted(wanted.keys() | found.keys()):
        shapes = [
            np.shape(t[name]) if name in t else "missing" for t in (wanted, found)
        ]
        if shapes[0] != shapes[1]:
            return name, *shapes
    return None


def begin_checkpoints(folders: Mapping[int, Path]) -> None:
    """Notes in each run directory which seeds are trained together."""
    for folder in folders.values():
        make_folder(folder / FOLDER)
        write_file(folder / FOLDER / _SEEDS, json_line(list(folders)))


def seeds_together(folder: Path) -> list[int]:
    """Returns what `begin_checkpoints` noted in a run directory; empty without it."""
    try:
        return decode(list[int], json.loads((folder / FOLDER / _SEEDS).read_bytes()))
    except (OSError, ValueError):
        return []


def save_checkpoint(
    checkpoint: Checkpoint,
    folders: Mapping[int, Path],
    keep: int = KEEP,
    origin: Origin = ANY_ORIGIN,
) -> None:
    """Writes a checkpoint of each seed into its run directory, and keeps the newest.

    Raises:
        InputError: a file cannot be written; earlier ones are then still there.
    """
    leaves = _named_leaves(jax.device_get(checkpoint.states))
    for index, (seed, folder) in enumerate(folders.items()):
        content = serialization.msgpack_serialize(
            {
                "seed": str(seed),
                **origin._asdict(),
                "history": json.dumps(
                    [e.__dict__ for e in checkpoint.histories[index]]
                ),
                "states": {name: np.asarray(v[index]) for name, v in leaves.items()},
            }
        )
        make_folder(folder / FOLDER)
        write_file(_path(folder, checkpoint.epoch), add_checksum(content))
        for epoch in sorted(_epochs(folder))[:-keep]:
            _path(folder, epoch).unlink(missing_ok=True)


def load_checkpoint(
    folders: Mapping[int, Path], config: TrainConfig, origin: Origin = ANY_ORIGIN
) -> Checkpoint | None:
    """Returns the newest sound checkpoint that all seeds have; None if they have none.

    Unsound ones, and those of another origin, are named in a warning.

    Raises:
        InputError: there are checkpoints, but none is sound.
    """
    model = create_model(config)
    like = jax.eval_shape(
        lambda: init_state(model, create_optimizer(config, 3), jax.random.key(0))
    )
    common = set.intersection(*(_epochs(folder) for folder in folders.values()))
    for epoch in sorted(common, reverse=True):
        loaded = []
        for seed, folder in folders.items():
            try:
                loaded.append(_load(folder, epoch, seed, like, origin))
            except (OSError, ValueError) as error:
                path = _path(folder, epoch)
                logging.warning("%s is not used: %s", path, error)
        if len(loaded) == len(folders):
            states = jax.tree.map(
                lambda *leaves: np.stack(leaves), *[state for state, _ in loaded]
            )
            return Checkpoint(states, [history for _, history in loaded])
    if common:
        names = ", ".join(str(folder / FOLDER) for folder in folders.values())
        raise InputError(
            f"no checkpoint in {names} is sound; train again with --overwrite in place "
            "of --resume"
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
    """Returns whether a run directory holds checkpoints, sound or not."""
    return bool(_epochs(folder))


def _path(folder: Path, epoch: int) -> Path:
    return folder / FOLDER / f"epoch{epoch:05d}.msgpack"


def _epochs(folder: Path) -> set[int]:
    """Returns after which epochs a run directory holds a checkpoint."""
    paths = (folder / FOLDER).glob("epoch*.msgpack")
    words = [path.stem.removeprefix("epoch") for path in paths]
    return {int(word) for word in words if word.isascii() and word.isdigit()}


def _named_leaves(tree: Any) -> dict[str, Any]:
    """Returns a tree's leaves by their paths, in order."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _load(
    folder: Path, epoch: int, seed: int, like: TrainState, origin: Origin
) -> tuple[TrainState, list[EpochRecord]]:
    """Reads a checkpoint of one seed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or of another network, seed, epoch, data set or code.
    """
    content = bytes(verify_checksum(_path(folder, epoch).read_bytes()))
    try:
        values = serialization.msgpack_restore(content)
        found_seed, leaves = int(values["seed"]), dict(values["states"])
        found = Origin(*(values.get(name) or "" for name in Origin._fields))
        history = decode(list[EpochRecord], json.loads(values["history"]))
    except Exception as error:  # msgpack's own errors are of many unrelated types
        raise ValueError(f"it is of another version ({error})") from error
    if found_seed != seed:
        raise ValueError(f"it is of seed {found_seed}, not {seed}")
    if origin.checksum and found.checksum not in ("", origin.checksum):
        raise ValueError(f"it is of other data, sha256 {found.checksum}")
    if origin.code not in ("", found.code):
        raise ValueError("it is of another version of the code")
    if len(history) != epoch:
        raise ValueError(f"it is of epoch {len(history)}, not {epoch}")
    wanted = _named_leaves(like)
    if (different := _different_leaf(wanted, leaves)) is not None:
        name, here, there = different
        raise ValueError(f"it is of another network, {name} is {there}, not {here}")
    ordered = [leaves[name] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(like), ordered), history
