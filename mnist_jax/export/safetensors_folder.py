"""Runs as folders with their parameters in the safetensors format, and a model card."""

from pathlib import Path

import numpy as np

from mnist_jax.export.model_card import model_card
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import write_json
from mnist_jax.training.run_dir import (
    CONFIG,
    EXPORTED_PARAMS,
    RECORD,
    TrainedRun,
    load_run,
)
from mnist_jax.training.safetensors_file import save_safetensors

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


def predict_safetensors(folder: Path, images: np.ndarray) -> np.ndarray:
    """Returns what the loaded run computes in float32; see `Format`."""
    return load_run(folder).in_float32().predict(images)
