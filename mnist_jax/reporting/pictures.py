"""The pictures of the report: what each shows, its caption, and how it is drawn."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mnist_jax.data.types import DIGITS, Shapes
from mnist_jax.records.schema import DetailsRecord, RunRecord
from mnist_jax.reporting.plots import (
    MAX_NAMED,
    budget_figure,
    confusion_figure,
    digits_figure,
    filters_figure,
    history_figure,
    pareto_figure,
    pareto_frame,
)
from mnist_jax.reporting.predictions import mistake_image
from mnist_jax.reporting.tables import history_frame

Rows = Mapping[str, Sequence[RunRecord]]  # of a table, by name


class Picture(NamedTuple):
    """A picture in the page, also written to a file."""

    name: str  # stem of the file
    heading: str  # its title
    caption: str
    draw: Callable[[], Figure]


def comparison_pictures(rows: Rows, targets: Sequence[float]) -> list[Picture]:
    """Returns plots of accuracy, training time and parameters of the first networks.

    Validation accuracy is plotted if all runs have a validation set from the training
    set, with the targets.
    """
    pictures, first = [], dict(itertools.islice(rows.items(), MAX_NAMED))
    if all(run.config.validation == "fraction" for row in rows.values() for run in row):
        caption = (
            "Validation accuracy after each epoch, against training time without "
            "compiling. Points are seeds, lines are means."
            f"{' Dashed lines are the targets.' if targets else ''}"
        )
        draw = partial(budget_figure, first, targets)
        heading = "accuracy by training time"
        pictures.append(Picture("accuracy-by-time", heading, caption, draw))
    if len(rows) > 1:
        caption = (
            "Test accuracy against training time without compiling, means over seeds. "
            "Larger markers are more parameters. Filled markers are on the Pareto "
            "front: no other network is as accurate, as fast and as small, and better "
            "in one of the three."
        )
        draw = partial(pareto_figure, pareto_frame(rows)[:MAX_NAMED])
        heading = "test accuracy by training time"
        pictures.append(Picture("pareto-front", heading, caption, draw))
    return pictures


def curve_pictures(name: str, row: Sequence[RunRecord]) -> list[Picture]:
    """Returns plots of loss and accuracy by epoch for the runs of one row."""
    history = pd.concat([history_frame(run) for run in row])
    return [
        Picture(
            quantity,
            f"{quantity} of {name} (n={len(row)})",
            f"{quantity.capitalize()} by epoch, mean over seeds with a band from min "
            f"to max (n={len(row)}). Training metrics are measured during the epoch, "
            "validation after it.",
            partial(history_figure, history, [quantity]),
        )
        for quantity in ("loss", "accuracy")
    ]


def detail_pictures(
    name: str,
    seed: int,
    details: Sequence[DetailsRecord],
    shapes: Shapes,
) -> list[Picture]:
    """Returns the confusion matrix, worst mistakes and filters of one network.

    Args:
        name: name of the network.
        seed: seed of the first run.
        details: details of each run. Confusion counts are summed over the runs; images
            and filters are from the first run.
        shapes: of its images, and the number of its classes.
    """
    first, classes = details[0], details[0].class_names
    counts = np.sum([detail.confusion for detail in details], axis=0)
    wrong = counts.sum() - np.trace(counts)
    pictures = [
        Picture(
            "confusion",
            f"confusion matrix of {name} (n={len(details)})",
            "Test images by true and predicted class, summed over seeds "
            f"(n={len(details)}): {wrong:,} of {counts.sum():,} wrong. The stronger "
            "the blue, the more mistakes.",
            partial(confusion_figure, counts, classes),
        )
    ]
    if first.worst:
        images = np.array([mistake_image(w.pixels, shapes.image) for w in first.worst])
        separator = ", " if classes == DIGITS else "\n"  # long names need a line each
        titles = [
            f"true {classes[w.truth]}{separator}pred {classes[w.predicted]}\n"
            f"{w.probability:.1%}"
            for w in first.worst
        ]
        indices = ", ".join(str(w.index) for w in first.worst)
        pictures.append(
            Picture(
                "worst",
                f"worst mistakes of {name}, seed {seed}",
                "Most confidently misclassified test images: true class, predicted "
                f"class and its probability; seed {seed}, test images {indices}.",
                partial(digits_figure, images, titles, 4),
            )
        )
    if first.filters is not None:
        filters = np.array(first.filters)
        size, _, count = filters.shape
        pictures.append(
            Picture(
                "filters",
                f"first filters of {name}, seed {seed}",
                f"The {count} {size}x{size} filters of the first convolution, on a "
                f"common scale; seed {seed}.",
                partial(filters_figure, filters),
            )
        )
    return pictures
