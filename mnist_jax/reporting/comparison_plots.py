"""Plots that compare networks."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from mnist_jax.reporting.plots import (
    STYLES,
    NotebookFigure,
    plain_ticks,
    set_title,
    wrap,
)

MAX_NAMED = 12  # networks in a plot that are told apart


def budget_figure(
    runs: Mapping[str, Sequence[pd.DataFrame]], quantity: str, title: str = ""
) -> Figure:
    """Plots accuracy against training time, to compare networks at equal time.

    Args:
        runs: for each network name, one frame per seed as returned by `budget_frame`,
            with columns `seconds` and `accuracy` and a row per epoch. Only the first
            `MAX_NAMED` are named, the others are grey.
        quantity: label of the accuracy axis.
        title: figure title.
    """
    named = {name: wrap(name, 75) for name in list(runs)[:MAX_NAMED]}
    outside = len(runs) > 3  # the legend would cover the curves
    lines = sum(label.count("\n") + 1 for label in named.values())
    height = 4 + outside * 0.17 * (lines + 1)
    figure = NotebookFigure(figsize=(5.4, height), layout="constrained")
    axes = figure.subplots()
    set_title(figure, title)
    for number, (name, seeds) in enumerate(runs.items()):
        points = pd.concat(seeds)
        means = points.groupby(level=0).mean()
        if name not in named:
            axes.plot(means["seconds"], means["accuracy"], color="#808080", alpha=0.4)
            continue
        style = _style(number)
        axes.plot(means["seconds"], means["accuracy"], **style | {"marker": ""})
        axes.plot(points["seconds"], points["accuracy"], **style | {"linestyle": ""})
        # Empty, for a legend entry with both line and marker.
        axes.plot([], [], label=named[name], **style)
    if others := len(runs) - len(named):
        axes.plot([], [], label=f"{others} others", color="#808080", alpha=0.4)
    axes.set_xscale("log")
    plain_ticks(axes.xaxis)
    axes.set_xlabel("training time (s, log scale)")
    axes.set_ylabel(quantity)
    axes.grid(alpha=0.3)
    if outside:
        figure.legend(frameon=False, loc="outside lower left", fontsize=8)
    else:
        axes.legend(frameon=False, loc="lower right")
    return figure


def _style(number: int) -> dict[str, Any]:
    """Returns the style of a curve; those of `MAX_NAMED` curves differ."""
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
