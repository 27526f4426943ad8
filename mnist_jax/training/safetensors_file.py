"""Parameters in the safetensors format, which other frameworks read."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnist_jax.errors import InputError
from mnist_jax.records.environment import check_packages
from mnist_jax.records.files import write_file
from mnist_jax.training.checkpoints import from_leaves, named_leaves, params_sha256

# By their names in the format. `safetensors.numpy.load` does not know bfloat16.
_DTYPES = dict(F16=np.float16, BF16=jnp.bfloat16, F32=np.float32, F64=np.float64)


def save_safetensors(path: Path, variables: Any) -> None:
    """Writes the variables of a network to a safetensors file atomically.

    The arrays have the names of `named_leaves`.
    """
    from safetensors.numpy import save  # optional

    leaves = named_leaves(jax.device_get(variables))
    # The format stores memory as it lies.
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}
    write_file(path, save(arrays))


def load_safetensors(path: Path, like: Any, sha256: str) -> Any:
    """Loads the variables of a network; arguments are as for `load_params`."""
    check_packages(f"reading {path}", ["safetensors"], "safetensors")
    from safetensors import deserialize

    found = {
        name: np.frombuffer(a["data"], _DTYPES[a["dtype"]]).reshape(a["shape"])
        for name, a in deserialize(path.read_bytes())
    }
    variables = from_leaves(path, found, like)
    if (found_sha256 := params_sha256(variables)) != sha256:
        raise InputError(
            f"{path} is damaged: its arrays have the sha256 {found_sha256}, but the "
            f"run's record has {sha256}; export the run again"
        )
    return variables
