"""The formats to export a trained network to, each written and checked."""

import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mnist_jax.errors import InputError
from mnist_jax.export.onnx_file import predict_onnx, write_onnx
from mnist_jax.export.safetensors_file import predict_safetensors, write_safetensors
from mnist_jax.export.saved_model import predict_saved_model, write_saved_model
from mnist_jax.export.stablehlo_file import predict_stablehlo, write_stablehlo
from mnist_jax.records.environment import check_packages
from mnist_jax.training.run_dir import TrainedRun

# Allowed difference of a probability. Rounding makes up to 1e-5, with raw pixels and
# logits of hundreds; a layer in another layout or order makes far more.
_TOLERANCE = 1e-4


class Format(NamedTuple):
    """How a network is written in a format, and read to check what was written."""

    write: Callable[[TrainedRun, Path], None]
    # Returns the probabilities [N,classes] of images [N,H,W] uint8. A format for arrays
    # alone takes the network from the run.
    predict: Callable[[Path, np.ndarray, TrainedRun], np.ndarray]
    packages: tuple[str, ...]  # which the extra of the format's name installs


FORMATS: Mapping[str, Format] = {
    "onnx": Format(write_onnx, predict_onnx, ("onnx", "onnxruntime")),
    "safetensors": Format(write_safetensors, predict_safetensors, ("safetensors",)),
    "stablehlo": Format(write_stablehlo, predict_stablehlo, ("flatbuffers",)),
    "saved": Format(write_saved_model, predict_saved_model, ("tensorflow",)),
}


def check_export(name: str, path: Path) -> None:
    """Checks before any work is done that a run can be exported in a format."""
    check_packages(f"--format={name}", FORMATS[name].packages, name)
    path.parent.mkdir(parents=True, exist_ok=True)


def export_run(run: TrainedRun, name: str, path: Path, images: np.ndarray) -> float:
    """Exports a run, and compares the probabilities that the result gives.

    The result replaces an existing file, or an empty folder, only if they agree on
    images `[N,H,W] uint8`. Returns the largest difference of a probability.
    """
    form = FORMATS[name]
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        form.write(run, temporary)
        found = form.predict(temporary, images, run)
        difference = float(np.abs(found - run.in_float32().predict(images)).max())
        if not difference <= _TOLERANCE:  # nor NaN
            raise InputError(
                f"--format={name} would not classify as the trained network does: on "
                f"{len(images):,} test images a probability differs by "
                f"{difference:.2g}, more than {_TOLERANCE:g}; nothing was written, "
                "give another --format"
            )
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)
    return difference
