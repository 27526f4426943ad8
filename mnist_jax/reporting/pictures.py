"""The pictures of the report: what each shows, its caption, and how it is drawn."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mnist_jax.data.types import DIGITS, MNIST, Shapes, class_names
from mnist_jax.errors import InputError
from mnist_jax.records.schema import DetailsRecord, RunRecord
from mnist_jax.reporting.comparison_plots import (
    MAX_NAMED,
    budget_figure,
    pareto_figure,
)
from mnist_jax.reporting.plots import (
    confusion_figure,
    curve_figure,
    digits_figure,
    filters_figure,
)
from mnist_jax.reporting.predictions import mistake_image
from mnist_jax.reporting.tables import (
    budget_frame,
    history_frame,
    pareto_frame,
    row_names,
)
from mnist_jax.training.run_dir import DETAILS

DRAWN = 6  # networks per table with their own pictures; the page must stay below 3 MB


class Picture(NamedTuple):
    """A picture in the page, also written to a file."""

    name: str  # stem of the file
    heading: str  # title in the file: the network and the number of runs
    alt: str
    caption: str
    draw: Callable[[str], Figure]  # takes the title


def _runs(count: int) -> str:
    """Formats the number of runs."""
    return "1 run" if count == 1 else f"{count} runs with different seeds"


def _seed_counts(rows: Sequence[Sequence[RunRecord]]) -> str:
    """Formats the numbers of seeds of the rows, such as "n=1 or 3"."""
    return f"n={' or '.join(map(str, sorted({len(row) for row in rows})))}"


def _unnamed(count: int) -> str:
    """Returns a sentence on the networks without a name in a plot of `count`."""
    if count <= MAX_NAMED:
        return ""
    return f" Grey are all but the {MAX_NAMED} most accurate networks."


def budget_picture(
    number: int,
    rows: Sequence[Sequence[RunRecord]],
    comparison: pd.DataFrame,
    targets: Sequence[float],
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
    compiling = ""
    if len(runs) <= DRAWN:  # the table has them all
        named = zip(runs, comparison["compile s"], strict=True)
        listing = ", ".join(f"{name} {seconds}" for name, seconds in named)
        compiling = f" (seconds: {listing})"
    held_out = all(run.config.validation == "fraction" for row in rows for run in row)
    marked = targets if validated and held_out else ()
    dashed = " Dashed lines are the targets." if marked else ""
    n = _seed_counts(rows)
    return Picture(
        f"{number}-accuracy-by-time",
        f"all networks ({n})",
        "Accuracy against training time, one line per network",
        f"Accuracy on the {images:,} {split} images {when}, against training time. "
        f"Points are seeds, lines are means ({n}).{_unnamed(len(runs))}{dashed} "
        f"Compile time is excluded{compiling}.",
        lambda title: budget_figure(runs, f"{split} accuracy", title, marked),
    )


def pareto_picture(number: int, rows: Sequence[Sequence[RunRecord]]) -> Picture:
    """Returns a plot of the networks' test accuracy, training time and parameters."""
    n = _seed_counts(rows)
    return Picture(
        f"{number}-pareto-front",
        f"all networks ({n})",
        "Test accuracy against training time, one point per network",
        f"Test accuracy against training time without compiling, means over seeds ({n})"
        f".{_unnamed(len(rows))} Larger markers are more parameters. Filled markers "
        "are on the Pareto front: no other network is as accurate, as fast and as "
        "small, and better in one of the three.",
        lambda title: pareto_figure(pareto_frame(rows), title),
    )


def curve_pictures(name: str, row: Sequence[RunRecord]) -> list[Picture]:
    """Returns plots of loss and accuracy by epoch for the runs of one row."""
    history = pd.concat([history_frame(run) for run in row])
    band = "; the band spans min to max" if len(row) > 1 else ""
    return [
        Picture(
            quantity,
            f"{name} (n={len(row)})",
            f"{quantity.capitalize()} of {name} by epoch",
            f"{quantity.capitalize()} by epoch, mean of {_runs(len(row))}{band}. "
            "Training metrics are measured during the epoch, validation after it.",
            lambda title, quantity=quantity: curve_figure(  # type: ignore[misc]
                history, quantity, title
            ),
        )
        for quantity in ("loss", "accuracy")
    ]


def detail_pictures(
    name: str,
    seed: int,
    details: Sequence[DetailsRecord],
    dataset: str,
    shapes: Shapes = MNIST,
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
    first, classes = details[0], class_names(dataset, shapes.classes)
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
            f"Test images by true and predicted class, {_runs(len(details))}: "
            f"{wrong:,} of {counts.sum():,} wrong; darker is more mistakes.",
            lambda title: confusion_figure(counts, title, classes),
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
                lambda title: digits_figure(images, captions, 4, title),
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
                lambda title: filters_figure(filters, title),
            )
        )
    return pictures
