"""The pictures of runs: what each shows, its caption, and its files."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

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
    save_figure,
    set_title,
)
from mnist_jax.reporting.predictions import mistake_image
from mnist_jax.reporting.tables import history_frame


class Picture(NamedTuple):
    """A picture in the page, also written to files."""

    name: str  # stem of the files
    heading: str  # its title
    caption: str
    figure: Figure


def save_picture(picture: Picture, folder: Path) -> list[Path]:
    """Writes a picture under its heading as PNG and SVG."""
    set_title(picture.figure, picture.heading)
    paths = [folder / f"{picture.name}{suffix}" for suffix in (".png", ".svg")]
    for path in paths:
        save_figure(picture.figure, path)
    return paths


def comparison_pictures(
    rows: Mapping[str, Sequence[RunRecord]], targets: Sequence[float]
) -> Iterator[Picture]:
    """Yields plots of accuracy, training time and parameters of the first rows by name.

    Validation accuracy is plotted if all runs have a validation set from the training
    set, with the targets.
    """
    if all(run.config.validation == "fraction" for row in rows.values() for run in row):
        first = dict(itertools.islice(rows.items(), MAX_NAMED))
        yield Picture(
            "accuracy-by-time",
            "accuracy by training time",
            "Validation accuracy after each epoch, against training time without "
            "compiling. Points are seeds, lines are means."
            f"{' Dashed lines are the targets.' if targets else ''}",
            budget_figure(first, targets),
        )
    if len(rows) > 1:
        yield Picture(
            "pareto-front",
            "test accuracy by training time, Pareto front filled",
            "Test accuracy against training time without compiling, means over seeds. "
            "Larger markers are more parameters. Filled markers are on the Pareto "
            "front: no other network is as accurate, as fast and as small, and better "
            "in one of the three.",
            pareto_figure(pareto_frame(rows)[:MAX_NAMED]),
        )


def run_pictures(
    name: str, runs: Sequence[RunRecord], details: Mapping[int, DetailsRecord]
) -> Iterator[Picture]:
    """Yields curves, confusion matrix, worst mistakes and filters of one network.

    Args:
        name: name of the network.
        runs: its runs, whose curves are means over seeds.
        details: of some of the runs, by seed. Confusion counts are summed over them;
            images and filters are from the first.
    """
    history, n = pd.concat([history_frame(run) for run in runs]), len(runs)
    for quantity in ("loss", "accuracy"):
        yield Picture(
            quantity,
            f"{quantity} of {name} (n={n})",
            f"{quantity.capitalize()} by epoch, mean over seeds with a band from min "
            f"to max (n={n}). Training metrics are measured during the epoch, "
            "validation after it.",
            history_figure(history, [quantity]),
        )
    if not details:
        return
    classes, (seed, first) = runs[0].class_names, next(iter(details.items()))
    counts = np.sum([detail.confusion for detail in details.values()], axis=0)
    wrong = counts.sum() - np.trace(counts)
    yield Picture(
        "confusion",
        f"confusion matrix of {name} (n={len(details)})",
        f"Test images by true and predicted class, summed over seeds (n={len(details)})"
        f": {wrong:,} of {counts.sum():,} wrong. The stronger the blue, the more "
        "mistakes.",
        confusion_figure(counts, classes),
    )
    if first.worst:
        images = np.array(
            [mistake_image(w.pixels, runs[0].image_shape) for w in first.worst]
        )
        titles = [
            f"true {classes[w.truth]}\npred {classes[w.predicted]}\n{w.probability:.1%}"
            for w in first.worst
        ]
        indices = ", ".join(str(w.index) for w in first.worst)
        yield Picture(
            "worst",
            f"worst mistakes of {name}, seed {seed}",
            "Most confidently misclassified test images: true class, predicted class "
            f"and its probability; seed {seed}, test images {indices}.",
            digits_figure(images, titles, 4),
        )
    if first.filters is not None:
        filters = np.array(first.filters)
        size, _, count = filters.shape
        yield Picture(
            "filters",
            f"first filters of {name}, seed {seed}",
            f"The {count} {size}x{size} filters of the first convolution, on a common "
            f"scale; seed {seed}.",
            filters_figure(filters),
        )
