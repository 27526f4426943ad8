"""Networks as StableHLO, with `jax.export`: one file for CPUs, GPUs and TPUs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from mnist_jax.models.flops import plain_model
from mnist_jax.records.files import write_file
from mnist_jax.training.epochs import jit, predict
from mnist_jax.training.run_dir import TrainedRun

PLATFORMS = ("cpu", "cuda", "tpu")


def make_classifier(run: TrainedRun) -> Callable[[jax.Array], jax.Array]:
    """Returns a function from images `[N,H,W] uint8` to probabilities `[N,classes]`.

    It computes in float32, can be traced for any N, and runs on every platform.
    """
    classify = partial(
        predict,
        run.variables,
        model=plain_model(run.config, run.shapes),
        preprocess=run.preprocess,
    )
    # Networks may call len(images), which must be a number: here it is 1.
    return jax.vmap(lambda image: classify(image[None])[0])


def write_stablehlo(run: TrainedRun, path: Path) -> None:
    """Writes a network as StableHLO, serialized by `jax.export`.

    The exported function maps `[batch,H,W] uint8` to probabilities `[batch,classes]
    float32`, for any number of images. It computes in float32 and uses the plain
    implementation of the layers, which runs on every platform.
    """
    classify = make_classifier(run)
    [batch] = export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *run.shapes.image), jnp.uint8)
    exported = export.export(jit(classify), platforms=PLATFORMS)(images)
    write_file(path, bytes(exported.serialize()))


def predict_stablehlo(path: Path, images: np.ndarray, run: TrainedRun) -> np.ndarray:
    """Returns what JAX computes on this platform; see `Format` for the arguments."""
    exported = export.deserialize(bytearray(path.read_bytes()))
    return np.asarray(jit(exported.call)(images))
