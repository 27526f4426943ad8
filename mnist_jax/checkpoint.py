"""Parameters to disk and back, in Flax's msgpack form."""

from pathlib import Path
from typing import Any

import jax
from flax import serialization
from flax.traverse_util import flatten_dict

from mnist_jax.errors import InputError
from mnist_jax.files import write_file


def save_params(path: Path, params: Any) -> None:
    """Writes parameters whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_file(path, serialization.to_bytes(jax.device_get(params)))


def load_params(path: Path, like: Any) -> Any:
    """Reads parameters for a network.

    Args:
        path: what `save_params` wrote.
        like: the network's own parameters, or their shapes.

    Raises:
        InputError: the file is missing, damaged or of another network.
    """
    try:
        params = serialization.msgpack_restore(path.read_bytes())
        found = {"/".join(key): leaf for key, leaf in flatten_dict(params).items()}
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; give the directory of a run that "
            "ended"
        ) from error
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
