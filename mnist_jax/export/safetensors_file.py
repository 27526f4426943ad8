"""The arrays of networks in the safetensors format, with their record as metadata."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from mnist_jax.records.files import write_file
from mnist_jax.records.schema import json_line
from mnist_jax.training.checkpoints import from_leaves, named_leaves
from mnist_jax.training.run_dir import TrainedRun


def write_safetensors(run: TrainedRun, path: Path) -> None:
    """Writes the variables of a network by the names of `named_leaves`.

    The metadata has the run's record as JSON, with its config and classes.
    """
    from safetensors.numpy import save  # optional

    leaves = named_leaves(jax.device_get(run.variables))
    # The format stores memory as it lies.
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}
    write_file(path, save(arrays, {"record": json_line(run.record)}))


def predict_safetensors(path: Path, images: np.ndarray, run: TrainedRun) -> np.ndarray:
    """Returns what the run computes with the file's arrays; see `Format`."""
    from safetensors.flax import load_file  # that of NumPy does not read bfloat16

    variables = from_leaves(path, load_file(path), run.variables)
    return dataclasses.replace(run, variables=variables).in_float32().predict(images)
