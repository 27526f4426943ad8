"""Plots of records, images and predictions."""

import io
import itertools
import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mnist_jax.data.types import DIGITS
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import RunRecord
from mnist_jax.reporting.tables import budget_frame

# Okabe and Ito's colours, safe for colour-blind readers. Markers and line styles
# differ too, for print.
# Source: Okabe & Ito, "Color Universal Design" (2008).
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS, _LINES = "os^Dv<>pPXh*", ("-", "--", "-.", ":")
_GREY = "#808080"
_IMAGE: Any = {"cmap": "gray_r", "vmin": 0, "vmax": 255, "interpolation": "none"}
MAX_CLASSES = 30  # with a label each in a plot
MAX_NAMED = len(_MARKERS)  # networks in a plot, whose styles differ
MAX_PREDICTIONS = 20  # images in a plot; each takes 0.1 s to draw

_LABELS = {"loss": "cross-entropy (nats, log scale)", "accuracy": "accuracy"}


class NotebookFigure(Figure):
    """A figure that notebooks show without pyplot."""

    def __init__(self, width: float, height: float) -> None:
        """Creates an empty figure; its sides are in inches."""
        super().__init__(figsize=(width, height), layout="constrained")

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def _wrap(text: str, width: int) -> str:
    """Breaks a text into lines, but not numbers such as 1e-3."""
    return textwrap.fill(text, width, break_on_hyphens=False)


def set_title(figure: Figure, title: str) -> None:
    """Sets the title of a figure, on as many lines as its width needs."""
    # At 10 points an inch has room for 12 characters.
    figure.suptitle(_wrap(title, round(12 * figure.get_figwidth())), fontsize=10)


def _style(number: int) -> dict[str, Any]:
    """Returns the style of a curve; those of `MAX_NAMED` curves differ."""
    return {
        "color": _COLORS[number % len(_COLORS)],
        "marker": _MARKERS[number],
        "linestyle": _LINES[number % len(_LINES)],
        "markersize": 6,
        "markerfacecolor": "none",
        "markeredgewidth": 1.4,
    }


def plain_ticks(axis: Axis) -> None:
    """Labels a logarithmic axis, whose data are drawn, with plain numbers."""
    low, high = axis.get_view_interval()
    # Where fewer than two of them are in view, matplotlib spaces others evenly.
    axis.set_major_locator(LogLocator(subs=(1,) if high > 1e4 * low else (1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def history_figure(
    history: pd.DataFrame, quantities: Sequence[str] = tuple(_LABELS)
) -> Figure:
    """Plots loss and accuracy by epoch, for training and any validation set.

    The `history_frame` of several runs may be concatenated, to plot their mean with a
    band from min to max. Each of the quantities has a panel.
    """
    figure = NotebookFigure(4.4 * len(quantities), 3.3)
    [panels] = figure.subplots(1, len(quantities), squeeze=False)
    by_epoch = history.astype(float).dropna(axis="columns", how="all").groupby("epoch")
    mean, low, high = by_epoch.mean(), by_epoch.min(), by_epoch.max()
    for axes, quantity in zip(panels, quantities, strict=True):
        names = {"training": quantity, "validation": f"val_{quantity}"}
        for number, (label, name) in enumerate(names.items()):
            if name in mean:
                style = _style(number)
                axes.plot(mean.index, mean[name], label=label, **style)
                band = {"color": style["color"], "alpha": 0.2, "linewidth": 0}
                axes.fill_between(mean.index, low[name], high[name], **band)
        if quantity == "loss":  # on a linear scale early epochs would flatten the rest
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
        axes.set(xlabel="epoch", ylabel=_LABELS[quantity])
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        # Above the axes, where it covers no data.
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    return figure


def pareto_frame(rows: Mapping[str, Sequence[RunRecord]]) -> pd.DataFrame:
    """Returns `accuracy`, `seconds`, `parameters` and `on_front` of each row, by name.

    The test accuracy and the training seconds are means over seeds. A row is on the
    Pareto front unless another one is as good in all three and better in one.
    """
    frame = pd.DataFrame(
        {
            "accuracy": statistics.fmean(run.test_accuracy for run in runs),
            "seconds": statistics.fmean(
                sum(epoch.train_seconds for epoch in run.epochs) for run in runs
            ),
            "parameters": runs[0].parameters,
        }
        for runs in rows.values()
    ).set_axis([*rows])
    costs = frame.assign(accuracy=-frame["accuracy"]).to_numpy()
    mine, others = costs[:, None], costs[None]
    dominated = (others <= mine).all(axis=-1) & (others < mine).any(axis=-1)
    return frame.assign(on_front=~dominated.any(axis=1))


def _time_figure(quantity: str, names: Sequence[str]) -> tuple[Figure, Axes]:
    """Creates a figure of an accuracy against time, with a legend of names below."""
    labels = [_wrap(name, 75) for name in names]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure = NotebookFigure(5.4, 4.2 + 0.17 * lines)
    axes = figure.subplots()
    axes.set(xscale="log", xlabel="training time (s, log scale)", ylabel=quantity)
    axes.grid(alpha=0.3)
    for number, label in enumerate(labels):  # empty: with both line and marker
        axes.plot([], [], label=label, **_style(number))
    figure.legend(frameon=False, loc="outside lower left", fontsize=8)
    return figure, axes


def budget_figure(
    runs: Mapping[str, Sequence[RunRecord]], targets: Sequence[float] = ()
) -> Figure:
    """Plots validation accuracy against training time, for each seed and their mean.

    `runs` are those of each network, by name; a target has a dashed line.
    """
    figure, axes = _time_figure("validation accuracy", list(runs))
    for number, seeds in enumerate(runs.values()):
        points = pd.concat(map(budget_frame, seeds))
        means, style = points.groupby(level=0).mean(), _style(number)
        axes.plot(means["seconds"], means["accuracy"], **style | {"marker": ""})
        axes.plot(points["seconds"], points["accuracy"], **style | {"linestyle": ""})
    for target in targets:
        axes.axhline(target, color=_GREY, linestyle="--", linewidth=1)
        # At the left edge, where the curves are below the targets.
        position = axes.get_yaxis_transform()
        axes.text(0.01, target, f"{target}", transform=position, va="bottom", size=8)
    plain_ticks(axes.xaxis)
    return figure


def pareto_figure(points: pd.DataFrame) -> Figure:
    """Plots a `pareto_frame`: test accuracy against training time.

    Markers grow with the parameters; those on the front are filled.
    """
    parameters = points["parameters"].items()
    names = [f"{name}, {count:,} parameters" for name, count in parameters]
    figure, axes = _time_figure("test accuracy", names)
    for number, point in enumerate(points.itertuples()):
        style = _style(number) | {"markersize": 2 * math.log10(point.parameters)}
        if point.on_front:
            style["markerfacecolor"] = style["color"]
        axes.plot([point.seconds], [point.accuracy], **style)
    plain_ticks(axes.xaxis)
    return figure


def confusion_figure(counts: np.ndarray, classes: Sequence[str] = DIGITS) -> Figure:
    """Plots a confusion matrix; only its mistakes are coloured.

    Args:
        counts: numbers of images `[classes,classes]`, by truth (row) and prediction
            (column).
        classes: their names; of more than `MAX_CLASSES`, cells have no numbers.
    """
    mistakes = counts - np.diag(np.diag(counts))
    shades = np.where(mistakes, 0.15 + 0.6 * mistakes / max(mistakes.max(), 1), 0.0)
    figure = NotebookFigure(4.6, 4.5)
    axes = figure.subplots()
    axes.imshow(shades, cmap="Blues", vmin=0, vmax=1, interpolation="none")
    axes.set(xlabel="predicted class", ylabel="true class")
    if len(classes) > MAX_CLASSES:
        return figure
    for (row, column), count in np.ndenumerate(counts):
        if count or row == column:
            axes.text(column, row, f"{count}", ha="center", va="center", fontsize=8)
    rotation = 90 if max(map(len, classes)) > 2 else 0
    axes.set_xticks(range(len(classes)), classes, rotation=rotation)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xticks(np.arange(len(counts) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(counts) - 1) + 0.5, minor=True)
    axes.grid(which="minor", alpha=0.3, linewidth=0.5)
    axes.tick_params(which="both", length=0)
    return figure


def digits_figure(
    images: np.ndarray, captions: Sequence[object] | np.ndarray, columns: int = 10
) -> Figure:
    """Draws images `[N,H,W]` in rows of up to `columns`, with captions above."""
    columns = min(len(images), columns)
    rows = -(-len(images) // columns)
    lines = max(str(caption).count("\n") for caption in captions) + 1
    figure = NotebookFigure(1.1 * columns, (1.15 + 0.14 * lines) * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, caption in zip(grid, images, captions, strict=False):
        axes.imshow(image, **_IMAGE)
        axes.set_title(str(caption), fontsize=9)
    return figure


def filters_figure(filters: np.ndarray) -> Figure:
    """Draws the filters `[k,k,F]` of a first convolution on a common colour scale."""
    columns = min(filters.shape[-1], 8)
    rows = -(-filters.shape[-1] // columns)
    limit = np.abs(filters).max() or 1.0
    figure = NotebookFigure(4.4, 0.55 * rows + 1)
    grid = figure.subplots(rows, columns, squeeze=False)
    # Orange and purple are safe for colour-blind readers; 0 is white.
    colors: Any = {"cmap": "PuOr", "vmin": -limit, "vmax": limit}
    for axes, kernel in itertools.zip_longest(grid.flat, np.moveaxis(filters, -1, 0)):
        axes.set(xticks=[], yticks=[])
        if kernel is None:
            axes.axis("off")
        else:
            picture = axes.imshow(kernel, interpolation="none", **colors)
    bar = figure.colorbar(picture, ax=grid, location="bottom", aspect=40, shrink=0.9)
    bar.set_label("weight")
    return figure


def predictions_figure(
    images: np.ndarray, predictions: pd.DataFrame, classes: Sequence[str] = DIGITS
) -> Figure:
    """Draws the first `MAX_PREDICTIONS` images beside their highest probabilities.

    Args:
        images: `[N,H,W] uint8`.
        predictions: as returned by `prediction_frame`, indexed by the image's index in
            the test set, or by its file name if its truth is unknown.
        classes: their names; the 5 most probable are drawn.
    """
    images, predictions = images[:MAX_PREDICTIONS], predictions[:MAX_PREDICTIONS]
    figure = NotebookFigure(5, 1.8 * len(images))
    grid = figure.subplots(len(images), 2, squeeze=False, width_ratios=(1, 2))
    for (left, right), image, (index, row) in zip(
        grid, images, predictions.iterrows(), strict=True
    ):
        left.imshow(image, **_IMAGE)
        left.axis("off")
        caption = Path(str(index)).name[-24:]
        if pd.notna(row.get("truth")):
            caption = f"test image {index}\ntrue {classes[int(row['truth'])]}"
        left.set_title(caption, fontsize=9, parse_math=False)
        probabilities = row.filter(regex=r"^p\d").astype(float).set_axis(classes)
        highest = probabilities.nlargest(5)[::-1]  # the bar of the first is at the top
        right.barh(range(len(highest)), highest, tick_label=highest.index)
        right.set(xlim=(0, 1), xlabel="probability")
        right.set_title(f"predicted {highest.index[-1]}", fontsize=9)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure in the format given by the file's suffix."""
    picture = io.BytesIO()
    # In SVG text as text: a tenth of the bytes of outlines.
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(picture, dpi=150, format=path.suffix[1:])
    write_file(path, picture.getvalue())
