"""The part of the report on a sweep: its table, pictures and best settings."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mnist_jax.reporting.pictures import Picture
from mnist_jax.reporting.plots import STYLES, NotebookFigure, legend_above, plain_ticks
from mnist_jax.reporting.sweep_tables import (
    best_command,
    flag_lines,
    format_sweep,
    read_rows,
    setting_names,
    sweep_frame,
    sweep_provenance,
)
from mnist_jax.reporting.tables import sort_value
from mnist_jax.training.trials import FINISHED

_ACCURACY = "validation accuracy"
_MAX_TICKS = 12  # named values on an axis


class SweepSection(NamedTuple):
    """The page's content for a sweep."""

    summary: str
    columns: list[str]
    rows: list[list[tuple[str, float | str]]]  # cells: text and sort key
    pictures: list[Picture]
    command: str  # trains the best settings; empty if no trial has finished
    flags: str  # of the best settings, a line each
    provenance: list[str]


class _Scale(NamedTuple):
    """Positions of an axis' texts: as numbers, or by their order."""

    positions: dict[str, float]
    numbers: bool
    log: bool


def _scale(texts: Sequence[str]) -> _Scale:
    """Returns the positions of texts, in the logarithm if they span much.

    >>> _scale(["0.001", "0.1"]).log, _scale(["adam", "sgd"]).positions
    (True, {'adam': 0.0, 'sgd': 1.0})
    """
    try:
        numbers = {text: float(text) for text in texts}
        low, high = min(numbers.values()), max(numbers.values())
        return _Scale(numbers, True, low > 0 and high / low >= 8)
    except ValueError:
        return _Scale(
            {t: float(i) for i, t in enumerate(dict.fromkeys(texts))}, False, False
        )


def flag_figure(frame: pd.DataFrame, name: str) -> Figure:
    """Plots the validation accuracy of all trials against one of their flags.

    Args:
        frame: as returned by `sweep_frame`.
        name: of the flag.
    """
    figure = NotebookFigure(figsize=(4.4, 3.3), layout="constrained")
    axes = figure.subplots()
    scale = _scale(list(frame[name]))
    x = frame[name].map(scale.positions)
    for finished, (color, marker, _) in zip((True, False), STYLES, strict=False):
        chosen = (frame["state"] == FINISHED) == finished
        if chosen.any():
            axes.errorbar(
                x[chosen],
                frame["val_accuracy"][chosen],
                yerr=frame["val_accuracy_std"][chosen].fillna(0),
                fmt=marker,
                color=color,
                markersize=5,
                alpha=0.7,
                label="finished" if finished else "stopped early",
            )
    if scale.log:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
    elif not scale.numbers:
        axes.set_xticks(list(scale.positions.values()), list(scale.positions))
        axes.tick_params(axis="x", rotation=30)
    axes.set_xlabel(name)
    axes.set_ylabel(_ACCURACY)
    axes.grid(alpha=0.3)
    if not all(frame["state"] == FINISHED):
        legend_above(axes)
    return figure


def parallel_figure(frame: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Plots each trial as a line through its flags and its validation accuracy.

    Args:
        frame: as returned by `sweep_frame`.
        names: of the flags.
    """
    frame = frame.dropna(subset=["val_accuracy"]).sort_values("val_accuracy")
    width = max(6.0, 1.6 * (len(names) + 1))
    figure = NotebookFigure(figsize=(width, 3.6), layout="constrained")
    axes = figure.subplots()
    columns = []
    for position, name in enumerate(names):
        scale = _scale(list(frame[name]))
        values = {
            text: math.log(value) if scale.log else value
            for text, value in scale.positions.items()
        }
        low, span = min(values.values()), np.ptp(list(values.values())) or 1.0
        heights = {text: (value - low) / span for text, value in values.items()}
        columns.append(frame[name].map(heights))
        named = sorted(heights, key=lambda text: heights[text])
        for text in named[:: math.ceil(len(named) / _MAX_TICKS)]:
            axes.text(
                position - 0.03,
                heights[text],
                text,
                ha="right",
                va="center",
                fontsize=8,
            )
    accuracy = frame["val_accuracy"]
    norm = Normalize(accuracy.min(), max(accuracy.max(), accuracy.min() + 1e-6))
    columns.append(accuracy.map(norm))
    colors = matplotlib.colormaps["cividis"]
    for line, value in zip(np.column_stack(columns), accuracy, strict=True):
        axes.plot(
            range(len(columns)), line, color=colors(norm(value)), alpha=0.8, lw=1.2
        )
    for position in range(len(columns)):
        axes.axvline(position, color="#808080", lw=0.8)
    axes.set_xticks(range(len(columns)), [*names, _ACCURACY])
    axes.set_yticks([])
    axes.set_xlim(-0.6, len(columns) - 0.9)
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    figure.colorbar(ScalarMappable(norm, colors), ax=axes, label=_ACCURACY)
    return figure


def read_sweep(out: Path) -> SweepSection | None:
    """Returns the page's content for the sweep in a folder; None if it holds none."""
    rows = read_rows(out)
    if not rows:
        return None
    frame = sweep_frame(rows)
    table = format_sweep(frame)
    names = [n for n in setting_names(rows) if frame[n].nunique() > 1]
    pictures = [
        Picture(
            name=f"sweep-{name}",
            heading=f"{_ACCURACY} by {name}",
            caption=f"A point for each trial: the mean over its seeds, with its "
            f"standard deviation, against {name}.",
            draw=partial(flag_figure, frame, name),
        )
        for name in names
    ]
    if names and frame["val_accuracy"].notna().any():
        pictures.append(
            Picture(
                name="sweep-parallel",
                heading=f"{_ACCURACY} of all trials",
                caption="Parallel coordinates: a line for each trial, through its "
                f"flags to its {_ACCURACY}.",
                draw=partial(parallel_figure, frame, names),
            )
        )
    cells = table.astype(str).to_numpy().tolist()
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states))
    command = flags = ""
    if rows[0].state == FINISHED:
        command = best_command(out, rows[0])
        flags = "\n".join(flag_lines(rows[0]))
    return SweepSection(
        f"{len(rows)} trials: {counts}",
        list(table.columns),
        [[(c, sort_value(c.partition(",")[0])) for c in row] for row in cells],
        pictures,
        command,
        flags,
        sweep_provenance(rows),
    )
