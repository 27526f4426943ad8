"""Plots that compare networks."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mnist_jax.reporting.plots import (
    STYLES,
    NotebookFigure,
    plain_ticks,
    set_title,
    wrap,
)

MAX_NAMED = 12  # networks in a plot that are told apart
_GREY = "#808080"
_OUTSIDE: Mapping[str, Any] = {
    "frameon": False,
    "loc": "outside lower left",
    "fontsize": 8,
}


def budget_figure(
    runs: Mapping[str, Sequence[pd.DataFrame]],
    quantity: str,
    title: str = "",
    targets: Sequence[float] = (),
) -> Figure:
    """Plots accuracy against training time, to compare networks at equal time.

    Args:
        runs: for each network name, one frame per seed as returned by `budget_frame`,
            with columns `seconds` and `accuracy` and a row per epoch. Only the first
            `MAX_NAMED` are named, the others are grey.
        quantity: label of the accuracy axis.
        title: figure title.
        targets: accuracies to mark by a dashed line.
    """
    labels = _labels(list(runs))
    outside = len(runs) > 3  # the legend would cover the curves
    figure, axes = _time_figure(quantity, title, labels if outside else ())
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
    if outside:
        figure.legend(**_OUTSIDE)
    else:
        axes.legend(frameon=False, loc="lower right")
    return figure


def pareto_figure(points: pd.DataFrame, title: str = "") -> Figure:
    """Plots test accuracy against training time, and marks the Pareto front.

    Args:
        points: as returned by `pareto_frame`, most accurate first. Markers grow with
            the parameters; those on the front are filled. Only the first `MAX_NAMED`
            are named, the others are grey.
        title: figure title.
    """
    parameters = points["parameters"].items()
    labels = _labels([f"{name}, {count:,} parameters" for name, count in parameters])
    filled = "filled: on the Pareto front"
    figure, axes = _time_figure("test accuracy", title, [*labels, filled])
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
    figure.legend(**_OUTSIDE)
    return figure


def _labels(names: Sequence[str]) -> list[str]:
    """Returns the labels of the first `MAX_NAMED` networks, and one for all others."""
    labels = [wrap(name, 75) for name in names[:MAX_NAMED]]
    others = len(names) - len(labels)
    return [*labels, f"{others} others"] if others else labels


def _time_figure(
    quantity: str, title: str, outside: Sequence[str]
) -> tuple[Figure, Axes]:
    """Creates a figure of an accuracy against time.

    Args:
        quantity: label of the accuracy axis.
        title: figure title.
        outside: labels of a legend below the axes, to leave room for.
    """
    lines = sum(label.count("\n") + 1 for label in outside)
    height = 4 + 0.17 * (lines + bool(lines))
    figure = NotebookFigure(figsize=(5.4, height), layout="constrained")
    axes = figure.subplots()
    set_title(figure, title)
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
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
