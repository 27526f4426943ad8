"""Parameters in the safetensors format, which other frameworks read."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mnist_jax.errors import InputError
from mnist_jax.records.environment import check_packages
from mnist_jax.records.files import write_file
from mnist_jax.training.checkpoints import check_fit, params_sha256, read_params


def save_safetensors(path: Path, params: Any) -> None:
    """Writes parameters to a safetensors file atomically.

    The arrays are named by layer and parameter, such as `Dense_0/kernel`.

    Raises:
        InputError: the file cannot be written.
    """
    from safetensors.numpy import save  # optional

    leaves = flatten_dict(jax.device_get(params), sep="/")
    # The format stores memory as it lies.
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in leaves.items()}
    write_file(path, save(arrays))


def load_safetensors(path: Path, like: Any, sha256: str) -> Any:
    """Loads parameters for a network.

    Args:
        path: file written by `save_safetensors`.
        like: the network's parameters, or their shapes.
        sha256: expected `params_sha256` of the parameters.

    Raises:
        InputError: the file is missing, damaged or does not fit the network, or the
            package safetensors is not installed.
    """
    check_packages(f"reading {path}", ["safetensors"], "safetensors")
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        found = load(read_params(path))
    except (SafetensorError, KeyError) as error:  # KeyError: an unknown type
        raise InputError(f"{path} is damaged ({error}); export the run again") from None
    check_fit(path, found, like)
    names = flatten_dict(like)
    # In the order of the network: the file has its own.
    params = unflatten_dict({name: found["/".join(name)] for name in names})
    if (found_sha256 := params_sha256(params)) != sha256:
        raise InputError(
            f"{path} is damaged: its parameters have the sha256 {found_sha256}, but "
            f"the run's record has {sha256}; export the run again"
        )
    return params
