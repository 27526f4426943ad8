"""Plots that compare networks."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mnist_jax.records.schema import RunRecord
from mnist_jax.reporting.plots import STYLES, NotebookFigure, plain_ticks, wrap
from mnist_jax.reporting.tables import history_frame

MAX_NAMED = 12  # networks in a plot that are told apart
_GREY = "#808080"
_OUTSIDE: Mapping[str, Any] = {
    "frameon": False,
    "loc": "outside lower left",
    "fontsize": 8,
}


def budget_frame(record: RunRecord, split: str = "validation") -> pd.DataFrame:
    """Returns `seconds` of training so far and `accuracy` after each epoch of a run.

    Seconds exclude compiling and evaluation. With `split="test"`, a single row holds
    the final test accuracy.
    """
    history = history_frame(record)
    seconds = history["train_seconds"].cumsum()
    if split == "test":
        values = {"seconds": seconds.iloc[-1:], "accuracy": record.test_accuracy}
        return pd.DataFrame(values)
    return pd.DataFrame({"seconds": seconds, "accuracy": history["val_accuracy"]})


def pareto_frame(
    names: Sequence[str], rows: Sequence[Sequence[RunRecord]]
) -> pd.DataFrame:
    """Returns `accuracy`, `seconds`, `parameters` and `on_front` of each row, by name.

    The test accuracy and the training seconds are means over seeds. A row is on the
    Pareto front unless another one is as good in all three and better in one.
    """
    frame = pd.DataFrame(
        {
            "accuracy": [
                statistics.fmean(run.test_accuracy for run in runs) for runs in rows
            ],
            "seconds": [
                statistics.fmean(
                    sum(epoch.train_seconds for epoch in run.epochs) for run in runs
                )
                for runs in rows
            ],
            "parameters": [runs[0].parameters for runs in rows],
        },
        index=names,
    )
    costs = frame[["seconds", "parameters"]].assign(error=-frame["accuracy"])
    mine, others = costs.to_numpy()[:, None], costs.to_numpy()[None]
    dominated = (others <= mine).all(axis=-1) & (others < mine).any(axis=-1)
    return frame.assign(on_front=~dominated.any(axis=1))


def budget_figure(
    runs: Mapping[str, Sequence[pd.DataFrame]],
    quantity: str,
    targets: Sequence[float] = (),
) -> Figure:
    """Plots accuracy against training time, to compare networks at equal time.

    Args:
        runs: for each network name, one frame per seed as returned by `budget_frame`,
            with columns `seconds` and `accuracy` and a row per epoch. Only the first
            `MAX_NAMED` are named, the others are grey.
        quantity: label of the accuracy axis.
        targets: accuracies to mark by a dashed line.
    """
    labels = _labels(list(runs))
    figure, axes = _time_figure(quantity, labels)
    for number, seeds in enumerate(runs.values()):
        points, style = pd.concat(seeds), _style(number)
        means = points.groupby(level=0).mean()
        axes.plot(means["seconds"], means["accuracy"], **style | {"marker": ""})
        if number < MAX_NAMED:
            points_style = style | {"linestyle": ""}
            axes.plot(points["seconds"], points["accuracy"], **points_style)
        if number < len(labels):
            # Empty, for a legend entry with both line and marker.
            axes.plot([], [], label=labels[number], **style)
    for target in targets:
        axes.axhline(target, color=_GREY, linestyle="--", linewidth=1)
        # At the left edge, where the curves are below the targets.
        position = axes.get_yaxis_transform()
        axes.text(0.01, target, f"{target}", transform=position, va="bottom", size=8)
    plain_ticks(axes.xaxis)
    figure.legend(**_OUTSIDE)
    return figure


def pareto_figure(points: pd.DataFrame) -> Figure:
    """Plots test accuracy against training time, and marks the Pareto front.

    Args:
        points: as returned by `pareto_frame`, most accurate first. Markers grow with
            the parameters; those on the front are filled. Only the first `MAX_NAMED`
            are named, the others are grey.
    """
    parameters = points["parameters"].items()
    labels = _labels([f"{name}, {count:,} parameters" for name, count in parameters])
    filled = "filled: on the Pareto front"
    figure, axes = _time_figure("test accuracy", [*labels, filled])
    for number, point in enumerate(points.itertuples()):
        style = _style(number)
        style |= {
            "linestyle": "",
            "marker": style["marker"] or "o",
            "markerfacecolor": style["color"] if point.on_front else "none",
        }
        size = {"markersize": 2 * math.log10(point.parameters)}
        axes.plot([point.seconds], [point.accuracy], **style | size)
        if number < len(labels):
            axes.plot([], [], label=labels[number], **style)
    axes.plot([], [], "o", color=_GREY, label=filled)
    plain_ticks(axes.xaxis)
    figure.legend(**_OUTSIDE)
    return figure


def _labels(names: Sequence[str]) -> list[str]:
    """Returns the labels of the first `MAX_NAMED` networks, and one for all others."""
    labels = [wrap(name, 75) for name in names[:MAX_NAMED]]
    others = len(names) - len(labels)
    return [*labels, f"{others} others, in grey"] if others else labels


def _time_figure(quantity: str, labels: Sequence[str]) -> tuple[Figure, Axes]:
    """Creates a figure of an accuracy against time.

    Args:
        quantity: label of the accuracy axis.
        labels: of the legend below the axes, to leave room for.
    """
    lines = sum(label.count("\n") + 1 for label in labels)
    size = (5.4, 4.2 + 0.17 * lines)
    figure = NotebookFigure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_xlabel("training time (s, log scale)")
    axes.set_ylabel(quantity)
    axes.grid(alpha=0.3)
    return figure, axes


def _style(number: int) -> dict[str, Any]:
    """Returns the style of a network; those of `MAX_NAMED` networks differ."""
    if number >= MAX_NAMED:
        return {"color": _GREY, "alpha": 0.4, "marker": "", "linestyle": "-"}
    repeat, index = divmod(number, len(STYLES))
    return {
        "color": STYLES[index][0],
        # A repeated colour has another marker and another line.
        "marker": STYLES[(index + 3 * repeat) % len(STYLES)][1],
        "linestyle": STYLES[(index + repeat) % len(STYLES)][2],
        "markersize": 6,
        "markerfacecolor": "none",
        "markeredgewidth": 1.4,
    }
