"""Networks as TensorFlow SavedModels, with `jax2tf`."""

from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax.export.stablehlo_file import PLATFORMS, make_classifier
from mnist_jax.training.run_dir import TrainedRun

_SIGNATURE = "serving_default"


def write_saved_model(run: TrainedRun, folder: Path) -> None:
    """Writes a network as a SavedModel.

    Its default signature maps `images [N,H,W] uint8` to `probabilities [N,classes]
    float32`, for any N. It computes in float32.
    """
    import tensorflow as tf  # optional
    from jax.experimental import jax2tf

    shape = run.shapes.image
    classify = jax2tf.convert(
        make_classifier(run),
        polymorphic_shapes=[f"(batch, {', '.join(map(str, shape))})"],
        with_gradient=False,
        native_serialization_platforms=PLATFORMS,
    )
    module = tf.Module()
    module.classify = tf.function(
        lambda images: {"probabilities": classify(images)},
        input_signature=[tf.TensorSpec([None, *shape], tf.uint8, name="images")],
        autograph=False,
    )
    signature = module.classify.get_concrete_function()
    tf.saved_model.save(module, str(folder), {_SIGNATURE: signature})


def predict_saved_model(
    folder: Path, images: np.ndarray, run: TrainedRun
) -> np.ndarray:
    """Returns what TensorFlow computes; see `Format` for the arguments."""
    import tensorflow as tf  # optional

    loaded: Any = tf.saved_model.load(str(folder))
    return loaded.signatures[_SIGNATURE](images=tf.constant(images))[
        "probabilities"
    ].numpy()
