"""Plots of records, images and predictions."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
)

from mnist_jax.data.types import DIGITS
from mnist_jax.errors import InputError
from mnist_jax.records.files import write_file

# Okabe and Ito's colours, safe for colour-blind readers. Markers and line styles
# differ too, for print.
# Source: Okabe & Ito, "Color Universal Design" (2008).
STYLES = (
    ("#0072B2", "o", "-"),
    ("#D55E00", "s", "--"),
    ("#009E73", "^", "-."),
    ("#CC79A7", "D", ":"),
    ("#E69F00", "v", "-"),
    ("#56B4E9", "P", "--"),
)
_TRAIN, _VALIDATION = STYLES[:2]
MAX_CLASSES = 30  # with a label each in a plot
MAX_PREDICTIONS = 20  # images in a plot; each takes 0.1 s to draw
FORMATS = (".png", ".svg", ".pdf")

_LABELS = {"loss": "cross-entropy (nats, log scale)", "accuracy": "accuracy"}


class NotebookFigure(Figure):
    """A figure that notebooks show without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def set_title(figure: Figure, title: str) -> None:
    """Sets the title of a figure, on as many lines as its width needs."""
    # At 10 points an inch has room for 12 characters.
    figure.suptitle(wrap(title, round(12 * figure.get_figwidth())), fontsize=10)


def wrap(text: str, width: int) -> str:
    """Breaks a text into lines, but not numbers such as 1e-3."""
    return textwrap.fill(text, width, break_on_hyphens=False)


def plain_ticks(axis: Axis) -> None:
    """Labels a logarithmic axis, whose data are drawn, with four plain numbers or more.

    They are 0.01, 0.1, 1, ... where the axis spans much, then 1, 2, 5, 10, ..., then
    evenly spaced ones.
    """
    low, high = axis.get_view_interval()
    series = (1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)
    for locator in (*(LogLocator(subs=subs) for subs in series), MaxNLocator(5)):
        ticks = np.asarray(locator.tick_values(low, high))
        ticks = ticks[(low <= ticks) & (ticks <= high)]
        if len(ticks) >= 4:
            break
    axis.set_major_locator(FixedLocator(ticks.tolist()))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def legend_above(axes: Axes) -> None:
    """Adds a legend of one line above the axes, where it covers no data."""
    labels = axes.get_legend_handles_labels()[1]
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=len(labels), frameon=False
    )


def _draw_curves(axes: Axes, history: pd.DataFrame, quantity: str) -> None:
    """Plots a metric by epoch: mean over runs, with a band from min to max."""
    for name, label, (color, marker, line) in (
        (quantity, "training", _TRAIN),
        (f"val_{quantity}", "validation", _VALIDATION),
    ):
        by_epoch = history[name].astype(float).groupby(history["epoch"])
        mean = by_epoch.mean()
        if mean.isna().all():
            continue
        axes.plot(
            mean.index,
            mean,
            color=color,
            marker=marker,
            linestyle=line,
            markersize=5,
            label=label,
        )
        axes.fill_between(
            mean.index, by_epoch.min(), by_epoch.max(), color=color, alpha=0.2, lw=0
        )
    if quantity == "loss":  # on a linear scale the first epochs would flatten the rest
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
    axes.set_xlabel("epoch")
    axes.set_ylabel(_LABELS[quantity])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    legend_above(axes)


def history_figure(
    history: pd.DataFrame, quantities: Sequence[str] = tuple(_LABELS)
) -> Figure:
    """Plots loss and accuracy by epoch, for training and any validation set.

    Args:
        history: as returned by `history_frame`; the frames of several runs may be
            concatenated, to plot their mean with a band from min to max.
        quantities: a panel for each: "loss", "accuracy".
    """
    size = (4.4 * len(quantities), 3.3)
    figure = NotebookFigure(figsize=size, layout="constrained")
    [panels] = figure.subplots(1, len(quantities), squeeze=False)
    for axes, quantity in zip(panels, quantities, strict=True):
        _draw_curves(axes, history, quantity)
    return figure


def confusion_figure(counts: np.ndarray, classes: Sequence[str] = DIGITS) -> Figure:
    """Plots a confusion matrix; only its mistakes are coloured.

    Args:
        counts: numbers of images `[classes,classes]`, by truth (row) and prediction
            (column).
        classes: their names; of more than `MAX_CLASSES`, cells have no numbers.
    """
    counts = np.asarray(counts)
    mistakes = counts - np.diag(np.diag(counts))
    shades = np.where(mistakes, 0.15 + 0.6 * mistakes / max(mistakes.max(), 1), 0.0)
    figure = NotebookFigure(figsize=(4.6, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shades, cmap="Blues", vmin=0, vmax=1, interpolation="none")
    axes.set(xlabel="predicted class", ylabel="true class")
    if len(classes) > MAX_CLASSES:
        return figure
    for (row, column), count in np.ndenumerate(counts):
        if count or row == column:
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8)
    _label_classes(axes, classes)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xticks(np.arange(len(counts) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(counts) - 1) + 0.5, minor=True)
    axes.grid(which="minor", alpha=0.3, linewidth=0.5)
    axes.tick_params(which="both", length=0)
    return figure


def _label_classes(axes: Axes, classes: Sequence[str]) -> None:
    """Labels the horizontal axis with the names of the classes."""
    rotation = 0 if classes == DIGITS else 90
    axes.set_xticks(range(len(classes)), classes, rotation=rotation)


def digits_figure(
    images: np.ndarray,
    captions: Sequence[object] | np.ndarray,
    columns: int = 10,
) -> Figure:
    """Draws images `[N,H,W]` in rows of up to `columns`, with captions above."""
    columns = min(len(images), columns)
    rows = -(-len(images) // columns)
    lines = max(str(caption).count("\n") for caption in captions) + 1
    height = 1.15 + 0.14 * lines
    figure = NotebookFigure(
        figsize=(1.1 * columns, height * rows), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, caption in zip(grid, images, captions, strict=False):
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=255, interpolation="none")
        axes.set_title(str(caption), fontsize=9)
    return figure


def filters_figure(filters: np.ndarray) -> Figure:
    """Draws the filters `[k,k,F]` of a first convolution on a common colour scale."""
    filters = np.asarray(filters)
    count = filters.shape[-1]
    columns = min(count, 8)
    rows = -(-count // columns)
    limit = np.abs(filters).max() or 1.0
    figure = NotebookFigure(figsize=(4.4, 0.55 * rows + 1), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.ravel():
        axes.set(xticks=[], yticks=[])
        axes.axis("off")
    for axes, index in zip(grid.ravel(), range(count), strict=False):
        axes.axis("on")
        # Orange and purple are safe for colour-blind readers; 0 is white.
        picture = axes.imshow(
            filters[..., index],
            cmap="PuOr",
            vmin=-limit,
            vmax=limit,
            interpolation="none",
        )
    figure.colorbar(
        picture,
        ax=grid,
        orientation="horizontal",
        label="weight",
        aspect=40,
        shrink=0.9,
    )
    return figure


def predictions_figure(
    images: np.ndarray, predictions: pd.DataFrame, classes: Sequence[str] = DIGITS
) -> Figure:
    """Draws the first `MAX_PREDICTIONS` images beside their highest probabilities.

    Args:
        images: `[N,H,W] uint8`.
        predictions: as returned by `prediction_frame`, indexed by the image's index in
            the test set, or by its file name if its truth is unknown.
        classes: their names; of more than 20, the 10 most probable are drawn.
    """
    images, predictions = images[:MAX_PREDICTIONS], predictions[:MAX_PREDICTIONS]
    count = len(images)
    figure = NotebookFigure(figsize=(5, 1.8 * count), layout="constrained")
    grid = figure.subplots(count, 2, squeeze=False, width_ratios=(1, 2))
    for (left, right), image, (index, row) in zip(
        grid, images, predictions.iterrows(), strict=True
    ):
        left.imshow(image, cmap="gray_r", vmin=0, vmax=255)
        left.axis("off")
        if pd.notna(row.get("truth")):
            caption = f"test image {index}\ntrue {classes[int(row['truth'])]}"
        else:
            caption = _short(index)
        left.set_title(caption, fontsize=9, parse_math=False)
        values = np.array([row[f"p{label}"] for label in range(len(classes))], float)
        drawn = list(range(len(classes)))
        if len(classes) > 20:
            drawn = np.argsort(-values, kind="stable")[:10].tolist()
        right.bar(range(len(drawn)), values[drawn], color=_TRAIN[0])
        right.set(ylim=(0, 1), ylabel="probability")
        _label_classes(right, tuple(classes[label] for label in drawn))
        right.set_title(f"predicted {classes[int(row['predicted'])]}", fontsize=9)
    return figure


def _short(path: object) -> str:
    """Returns a file's name, shortened in the middle if it is long."""
    name = Path(str(path)).name
    return name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}"


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure in the format given by the file's suffix.

    Raises:
        InputError: the suffix is not in `FORMATS`.
    """
    if path.suffix not in FORMATS:
        raise InputError(
            f"a picture's file name must end in one of {', '.join(FORMATS)}; got {path}"
        )
    picture = io.BytesIO()
    # In SVG text as text: a tenth of the bytes of outlines.
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(picture, dpi=150, format=path.suffix[1:])
    write_file(path, picture.getvalue())
