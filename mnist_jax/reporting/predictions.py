"""Predictions of a trained network: probabilities, confusion matrix, mistakes."""

import base64

import numpy as np
import pandas as pd

from mnist_jax.data.types import Split
from mnist_jax.records.schema import DetailsRecord, MistakeRecord
from mnist_jax.training.run_dir import TrainedRun

_WORST = 12  # misclassified images kept in a record


def prediction_frame(
    probabilities: np.ndarray, labels: np.ndarray | None = None
) -> pd.DataFrame:
    """Returns one row per image: probabilities, their arg max, the truth if given.

    >>> prediction_frame(np.eye(10)[[3]], np.array([5]))[["predicted", "truth"]]
       predicted  truth
    0          3      5
    """
    columns = [f"p{c}" for c in range(probabilities.shape[1])]
    frame = pd.DataFrame(probabilities, columns=columns)
    frame["predicted"] = probabilities.argmax(axis=1)
    if labels is not None:
        frame["truth"] = labels
    return frame


def confusion_counts(
    truths: np.ndarray, predicted: np.ndarray, classes: int
) -> np.ndarray:
    """Counts images `[classes,classes]` by truth (row) and prediction (column).

    >>> confusion_counts(np.array([2, 2, 1]), np.array([2, 1, 1]), 3).sum(axis=1)
    array([0, 1, 2])
    """
    pairs = np.asarray(truths) * classes + predicted
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def _worst_mistakes(probabilities: np.ndarray, split: Split) -> list[MistakeRecord]:
    """Returns the most confidently misclassified images, most confident first."""
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != split.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_WORST]
    return [
        MistakeRecord(
            index=int(index),
            truth=int(split.labels[index]),
            predicted=int(predicted[index]),
            probability=float(confidence[index]),
            pixels=base64.b64encode(split.images[index].tobytes()).decode(),
        )
        for index in worst
    ]


def mistake_image(pixels: str, image_shape: tuple[int, ...]) -> np.ndarray:
    """Returns the image `[H,W] uint8` of a `MistakeRecord`.

    Raises:
        ValueError: `pixels` does not encode such an image.
    """
    image = np.frombuffer(base64.b64decode(pixels, validate=True), np.uint8)
    return image.reshape(image_shape)


def run_details(run: TrainedRun, test: Split) -> DetailsRecord:
    """Returns the data for the pictures of a trained network.

    Args:
        run: as returned by `load_run`.
        test: the run's test set, as NumPy arrays.
    """
    probabilities = run.predict(test.images)
    classes = probabilities.shape[1]
    counts = confusion_counts(test.labels, probabilities.argmax(axis=1), classes)
    filters = None
    if run.config.model == "cnn":
        kernel = np.asarray(run.variables["params"]["Conv_0"]["kernel"], np.float64)
        filters = kernel[:, :, 0].round(4).tolist()
    return DetailsRecord(
        confusion=counts.tolist(),
        worst=_worst_mistakes(probabilities, test),
        filters=filters,
        class_names=run.record.class_names,
    )
