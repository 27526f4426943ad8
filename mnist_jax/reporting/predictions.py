"""What a trained network says of single images, and which it gets wrong."""

import base64
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pandas as pd
from flax import linen as nn

from mnist_jax.config import TrainConfig
from mnist_jax.data.datasets import Split
from mnist_jax.models.networks import CLASSES, IMAGE_SHAPE, layer_names
from mnist_jax.records.schema import DetailsRecord, MistakeRecord

Predict = Callable[[Any, np.ndarray], jax.Array]

_BATCH = 1_000  # images at a time: of each, a CNN's layers keep about 100 kB
_WORST = 12  # wrong images that a record keeps


def make_predict(model: nn.Module, scale: Callable[[jax.Array], jax.Array]) -> Predict:
    """Returns the compiled function (params, images) -> probabilities.

    Its images are `[N,28,28] uint8`, its softmax probabilities `[N,10] float32`; it is
    compiled at its first call with an N.
    """

    @jax.jit
    def predict(params: Any, images: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, scale(images))
        return jax.nn.softmax(logits)

    return predict


def predict_probabilities(
    model: nn.Module,
    params: Any,
    scale: Callable[[jax.Array], jax.Array],
    images: np.ndarray,
) -> np.ndarray:
    """Returns the softmax probabilities `[N,10]` of images `[N,28,28] uint8`."""
    return _predict_parts(make_predict(model, scale), params, images)


def _predict_parts(predict: Predict, params: Any, images: np.ndarray) -> np.ndarray:
    """Predicts a few images at a time; see `_BATCH`."""
    parts = [images[at : at + _BATCH] for at in range(0, len(images), _BATCH)]
    return np.concatenate([np.asarray(predict(params, part)) for part in parts])


def prediction_frame(
    probabilities: np.ndarray, labels: np.ndarray | None = None
) -> pd.DataFrame:
    """Returns one row per image: ten probabilities, the arg max and any known truth.

    >>> prediction_frame(np.eye(10)[[3]], np.array([5]))[["predicted", "truth"]]
       predicted  truth
    0          3      5
    """
    frame = pd.DataFrame(probabilities, columns=[f"p{c}" for c in range(10)])
    frame["predicted"] = probabilities.argmax(axis=1)
    if labels is not None:
        frame["truth"] = labels
    return frame


def confusion_counts(truths: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Counts images `[10,10]` by truth (row) and prediction (column).

    >>> confusion_counts(np.array([5, 5, 3]), np.array([5, 3, 3]))[[3, 5]].sum(axis=1)
    array([1, 2])
    """
    pairs = np.asarray(truths) * CLASSES + predicted
    return np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def _worst_mistakes(probabilities: np.ndarray, split: Split) -> list[MistakeRecord]:
    """Returns the wrong images, those of the greatest probability first."""
    predicted, sureness = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != split.labels)
    worst = wrong[np.argsort(-sureness[wrong], kind="stable")][:_WORST]
    return [
        MistakeRecord(
            place=int(place),
            truth=int(split.labels[place]),
            predicted=int(predicted[place]),
            probability=float(sureness[place]),
            pixels=base64.b64encode(split.images[place].tobytes()).decode(),
        )
        for place in worst
    ]


def mistake_image(pixels: str) -> np.ndarray:
    """Returns the image `[28,28] uint8` of a `MistakeRecord`.

    Raises:
        ValueError: the text is not that of such an image.
    """
    image = np.frombuffer(base64.b64decode(pixels, validate=True), np.uint8)
    return image.reshape(IMAGE_SHAPE)


def run_details(
    config: TrainConfig,
    params: Any,
    predict: Predict,
    test: Split,
) -> DetailsRecord:
    """Returns what pictures of a trained network show.

    Args:
        config: of the run.
        params: as it ended.
        predict: of its network and pixel scaling, as `make_predict` returns it.
        test: the test set of the run, on the host.
    """
    params = jax.device_get(params)  # of a run, they lie on every device of its mesh
    probabilities = _predict_parts(predict, params, test.images)
    counts = confusion_counts(test.labels, probabilities.argmax(axis=1))
    filters = None
    if config.model == "cnn":
        kernel = np.asarray(params[layer_names(config)[0]]["kernel"], np.float64)
        filters = kernel[:, :, 0].round(4).tolist()
    return DetailsRecord(
        confusion=counts.tolist(),
        worst=_worst_mistakes(probabilities, test),
        filters=filters,
    )
