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
    frame = pd.DataFrame(probabilities).add_prefix("p")
    frame["predicted"] = probabilities.argmax(axis=1)
    if labels is not None:
        frame["truth"] = labels
    return frame


def mistake_image(pixels: str, image_shape: tuple[int, ...]) -> np.ndarray:
    """Returns the image `[H,W] uint8` of a `MistakeRecord`."""
    return np.frombuffer(base64.b64decode(pixels), np.uint8).reshape(image_shape)


def run_details(run: TrainedRun, test: Split) -> DetailsRecord:
    """Returns the data for the pictures of a trained network, from its test set."""
    probabilities = run.predict(test.images)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    counts = np.zeros((probabilities.shape[1],) * 2, int)
    np.add.at(counts, (test.labels, predicted), 1)
    wrong = np.flatnonzero(predicted != test.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_WORST]
    filters = None
    if run.config.model == "cnn":
        kernel = np.asarray(run.variables["params"]["Conv_0"]["kernel"], np.float64)
        filters = kernel[:, :, 0].round(4).tolist()
    return DetailsRecord(
        confusion=counts.tolist(),
        worst=[
            MistakeRecord(
                index=int(index),
                truth=int(test.labels[index]),
                predicted=int(predicted[index]),
                probability=float(confidence[index]),
                pixels=base64.b64encode(test.images[index].tobytes()).decode(),
            )
            for index in worst
        ],
        filters=filters,
    )
