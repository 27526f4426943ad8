"""Parameters to disk and back, in Flax's msgpack form, held to a sha256."""

import hashlib
from pathlib import Path
from typing import Any

import jax
import msgpack
import numpy as np
from flax import serialization
from flax.traverse_util import flatten_dict

from mnist_jax.errors import InputError
from mnist_jax.records.files import write_file

# More than the dimensions of an array or the layers and leaves of a network.
_MOST_ITEMS = 10_000


def params_sha256(params: Any) -> str:
    """Returns the sha256 of the file that `save_params` makes of parameters."""
    return hashlib.sha256(_to_bytes(params)).hexdigest()


def save_params(path: Path, params: Any) -> None:
    """Writes parameters whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_file(path, _to_bytes(params))


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
            f"{found_sha256}, where the run's record says {sha256}; train again"
        )
    try:
        check_sizes(content)
        params = serialization.msgpack_restore(content)
        leaves = flatten_dict(params).items()
        found = {"/".join(key): np.asarray(leaf) for key, leaf in leaves}
    except Exception as error:  # msgpack's own errors are of many unrelated types
        raise InputError(f"{path} is damaged ({error}); train again") from error
    wanted = {"/".join(key): leaf for key, leaf in flatten_dict(like).items()}
    for name in sorted(wanted.keys() | found.keys()):
        shapes = [
            tuple(tree[name].shape) if name in tree else "missing"
            for tree in (wanted, found)
        ]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"{path} does not fit this network: {name} is {shapes[0]} here and "
                f"{shapes[1]} in the file; use the flags of the run that wrote it"
            )
    return params


def _to_bytes(params: Any) -> bytes:
    return serialization.to_bytes(jax.device_get(params))


def check_sizes(content: bytes) -> None:
    """Raises ValueError where a list or map declares more than parameters ever have.

    For such a declaration msgpack allocates before it reads the items, once for each
    level of nesting, and a level takes only five bytes of a forged file.
    """
    limits = dict(max_array_len=_MOST_ITEMS, max_map_len=_MOST_ITEMS)

    def check_array(code: int, data: bytes) -> None:
        msgpack.unpackb(data, **limits)  # an array: its shape, type and bytes

    msgpack.unpackb(content, ext_hook=check_array, **limits)
