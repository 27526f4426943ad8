"""The pictures of the report: what each shows, its caption, and how it is drawn."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mnist_jax.data.types import DIGITS, Shapes, class_names
from mnist_jax.errors import InputError
from mnist_jax.records.schema import DetailsRecord, RunRecord
from mnist_jax.reporting.comparison_plots import (
    budget_figure,
    budget_frame,
    pareto_figure,
    pareto_frame,
)
from mnist_jax.reporting.plots import (
    confusion_figure,
    digits_figure,
    filters_figure,
    history_figure,
)
from mnist_jax.reporting.predictions import mistake_image
from mnist_jax.reporting.tables import history_frame, row_names
from mnist_jax.training.run_dir import DETAILS

DRAWN = 6  # networks per table with their own pictures; the page must stay below 3 MB


class Picture(NamedTuple):
    """A picture in the page, also written to a file."""

    name: str  # stem of the file
    heading: str  # title in the file: the network and the number of runs
    alt: str
    caption: str
    draw: Callable[[], Figure]


def _seeds(rows: Sequence[Sequence[RunRecord]]) -> str:
    """Formats the numbers of seeds of the rows, such as "n=1 or 3"."""
    return f"n={' or '.join(map(str, sorted({len(row) for row in rows})))}"


def budget_picture(
    number: int, rows: Sequence[Sequence[RunRecord]], targets: Sequence[float]
) -> Picture:
    """Returns a plot of accuracy against training time for all networks.

    Targets are marked if all runs have a validation set from the training set.
    """
    runs = {
        name: [budget_frame(run) for run in row]
        for name, row in zip(row_names(rows), rows, strict=True)
    }
    validated = all(run.validation_images for row in rows for run in row)
    if not validated:  # plot the test accuracy, which all runs have
        runs = {
            name: [
                frame.iloc[-1:].assign(accuracy=run.test_accuracy)
                for frame, run in zip(runs[name], row, strict=True)
            ]
            for name, row in zip(runs, rows, strict=True)
        }
    split = "validation" if validated else "test"
    images = getattr(rows[0][0], f"{split}_images")
    when = "after each epoch" if validated else "at the end"
    held_out = all(run.config.validation == "fraction" for row in rows for run in row)
    marked = targets if validated and held_out else ()
    dashed = " Dashed lines are the targets." if marked else ""
    n = _seeds(rows)
    return Picture(
        f"{number}-accuracy-by-time",
        f"all networks ({n})",
        "Accuracy against training time, one line per network",
        f"Accuracy on the {images:,} {split} images {when}, against training time "
        f"without compiling. Points are seeds, lines are means ({n}).{dashed}",
        partial(budget_figure, runs, f"{split} accuracy", marked),
    )


def pareto_picture(number: int, rows: Sequence[Sequence[RunRecord]]) -> Picture:
    """Returns a plot of the networks' test accuracy, training time and parameters."""
    n = _seeds(rows)
    return Picture(
        f"{number}-pareto-front",
        f"all networks ({n})",
        "Test accuracy against training time, one point per network",
        f"Test accuracy against training time without compiling, means over seeds "
        f"({n}). Larger markers are more parameters. Filled markers are on the Pareto "
        "front: no other network is as accurate, as fast and as small, and better in "
        "one of the three.",
        partial(pareto_figure, pareto_frame(rows)),
    )


def curve_pictures(name: str, row: Sequence[RunRecord]) -> list[Picture]:
    """Returns plots of loss and accuracy by epoch for the runs of one row."""
    history = pd.concat([history_frame(run) for run in row])
    return [
        Picture(
            quantity,
            f"{name} ({_seeds([row])})",
            f"{quantity.capitalize()} of {name} by epoch",
            f"{quantity.capitalize()} by epoch, mean over seeds with a band from min "
            f"to max ({_seeds([row])}). Training metrics are measured during the "
            "epoch, validation after it.",
            partial(history_figure, history, [quantity]),
        )
        for quantity in ("loss", "accuracy")
    ]


def detail_pictures(
    name: str,
    seed: int,
    details: Sequence[DetailsRecord],
    dataset: str,
    shapes: Shapes,
) -> list[Picture]:
    """Returns the confusion matrix, worst mistakes and filters of one network.

    Args:
        name: name of the network.
        seed: seed of the first run.
        details: details of each run. Confusion counts are summed over the runs; images
            and filters are from the first run.
        dataset: name of the dataset, for the names of its classes.
        shapes: of its images, and the number of its classes.

    Raises:
        InputError: a matrix or an image is damaged.
    """
    first = details[0]
    classes = first.class_names or class_names(dataset, shapes.classes)
    try:
        counts = np.sum([detail.confusion for detail in details], axis=0)
        images = np.array([mistake_image(w.pixels, shapes.image) for w in first.worst])
        filters = None if first.filters is None else np.array(first.filters)
        size = shapes.classes
        if counts.shape != (size, size):
            raise ValueError(f"confusion matrix is not {size}x{size}")
        if filters is not None and filters.ndim != 3:
            raise ValueError("filters are not 3-D")
        separator = ", " if classes == DIGITS else "\n"  # long names need a line each
        captions = [
            f"true {classes[w.truth]}{separator}pred {classes[w.predicted]}\n"
            f"{w.probability:.1%}"
            for w in first.worst
        ]
    except (ValueError, IndexError) as error:
        raise InputError(
            f"the details of {name} are damaged ({error}); delete {DETAILS} in its run "
            "directories and rerun benchmarks.compare to rewrite it"
        ) from error
    wrong = int(counts.sum() - np.trace(counts))
    pictures = [
        Picture(
            "confusion",
            f"{name} (n={len(details)})",
            f"Confusion matrix of {name}",
            "Test images by true and predicted class, summed over seeds "
            f"(n={len(details)}): {wrong:,} of {counts.sum():,} wrong. The stronger "
            "the blue, the more mistakes.",
            partial(confusion_figure, counts, classes),
        )
    ]
    if len(images):
        indices = ", ".join(str(w.index) for w in first.worst)
        pictures.append(
            Picture(
                "worst",
                f"{name}, seed {seed}",
                f"Most confidently misclassified test images of {name}",
                "Most confidently misclassified test images: true class, predicted "
                f"class and its probability; seed {seed}, test images {indices}.",
                partial(digits_figure, images, captions, 4),
            )
        )
    if filters is not None:
        size, _, count = filters.shape
        pictures.append(
            Picture(
                "filters",
                f"{name}, seed {seed}",
                f"First filters of {name}",
                f"The {count} {size}x{size} filters of the first convolution, on a "
                f"common scale; seed {seed}.",
                partial(filters_figure, filters),
            )
        )
    return pictures
