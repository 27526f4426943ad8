"""Parameters in the safetensors format, which other frameworks read."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.errors import InputError
from mnist_jax.records.environment import check_packages
from mnist_jax.records.files import write_file
from mnist_jax.training.checkpoints import (
    as_params,
    named_leaves,
    params_sha256,
    read_params,
)

# By their names in the format. `safetensors.numpy.load` does not know bfloat16.
_DTYPES = dict(F16=np.float16, BF16=jnp.bfloat16, F32=np.float32, F64=np.float64)


def save_safetensors(path: Path, params: Any) -> None:
    """Writes parameters to a safetensors file atomically.

    The arrays are named by layer and parameter, such as `Dense_0/kernel`.
    """
    from safetensors.numpy import save  # optional

    leaves = named_leaves(jax.device_get(params))
    # The format stores memory as it lies.
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}
    write_file(path, save(arrays))


def load_safetensors(path: Path, like: Any, sha256: str) -> Any:
    """Loads parameters for a network.

    Args:
        path: file written by `save_safetensors`.
        like: the network's parameters, or their shapes.
        sha256: expected `params_sha256` of the parameters.
    """
    check_packages(f"reading {path}", ["safetensors"], "safetensors")
    from safetensors import SafetensorError, deserialize

    try:
        found = {
            name: np.frombuffer(a["data"], _DTYPES[a["dtype"]]).reshape(a["shape"])
            for name, a in deserialize(read_params(path))
        }
    except (SafetensorError, KeyError) as error:  # KeyError: an unknown type
        raise InputError(f"{path} is damaged ({error}); export the run again") from None
    params = as_params(path, found, like)
    if (found_sha256 := params_sha256(params)) != sha256:
        raise InputError(
            f"{path} is damaged: its parameters have the sha256 {found_sha256}, but "
            f"the run's record has {sha256}; export the run again"
        )
    return params
