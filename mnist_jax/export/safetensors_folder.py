"""Runs as folders with their parameters in the safetensors format, and a model card."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from mnist_jax.export.model_card import model_card
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import write_json
from mnist_jax.training.checkpoints import named_leaves
from mnist_jax.training.run_dir import (
    CONFIG,
    EXPORTED_PARAMS,
    RECORD,
    TrainedRun,
    load_run,
)

CARD = "README.md"


def write_safetensors(run: TrainedRun, folder: Path) -> None:
    """Writes a run to a folder from which `load_run` loads it again.

    The folder has `model.safetensors`, `config.json`, `record.json` and `README.md`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(folder / EXPORTED_PARAMS, run.variables)
    # The record's config names the file of a custom network as it was trained.
    write_json(folder / CONFIG, run.record.config)
    write_json(folder / RECORD, run.record)
    write_file(folder / CARD, model_card(run))


def save_safetensors(path: Path, variables: Any) -> None:
    """Writes the variables of a network to a safetensors file atomically.

    The arrays have the names of `named_leaves`.
    """
    from safetensors.numpy import save  # optional

    leaves = named_leaves(jax.device_get(variables))
    # The format stores memory as it lies.
    arrays = {name: np.asarray(leaf, order="C") for name, leaf in leaves.items()}
    write_file(path, save(arrays))


def predict_safetensors(folder: Path, images: np.ndarray) -> np.ndarray:
    """Returns what the loaded run computes in float32; see `Format`."""
    return load_run(folder).in_float32().predict(images)
