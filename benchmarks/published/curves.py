"""Compares the accuracies that a source prints for each epoch with our runs."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from mnist_jax.reporting.plots import STYLES, Figure, NotebookFigure
from mnist_jax.reporting.statistics import prediction_interval

from .claims import Runs

# Accuracy on the test set after each epoch, as printed by the source. Of the four, ML10
# and CV print every epoch; CV's first two are not known to us.
CURVES: Mapping[str, tuple[float, ...]] = {
    "ml10_mlp_raw": (
        *(0.7821, 0.8551, 0.8932, 0.9094, 0.9136, 0.9235, 0.9235, 0.9212, 0.9202),
        *(0.9253, 0.9226, 0.9163, 0.9227, 0.9241, 0.9271, 0.9241, 0.9244, 0.9245),
        *(0.9302, 0.9240),
    ),
    "ml10_mlp": (
        *(0.9226, 0.9367, 0.9390, 0.9437, 0.9470, 0.9485, 0.9462, 0.9490, 0.9484),
        *(0.9496, 0.9508, 0.9497, 0.9502, 0.9504, 0.9504, 0.9505, 0.9520, 0.9513),
        *(0.9521, 0.9501),
    ),
    "ml10_cnn": (
        *(0.9796, 0.9854, 0.9848, 0.9885, 0.9910, 0.9872, 0.9893, 0.9911, 0.9926),
        0.9919,
    ),
}

RULE = (
    "Curves: accuracy on the test set after each epoch. RMS: root mean square over "
    "epochs of the published curve's distance from our mean; expected: the same for a "
    "further run of ours, √(mean of s²·(1+1/n)). Outside: epochs whose published "
    "accuracy is outside the 95 % prediction interval of our seeds."
)


class Curve(NamedTuple):
    """A published curve and the runs to compare it with."""

    system: str
    published: np.ndarray  # accuracies [epochs]
    ours: np.ndarray  # accuracies [seeds,epochs]
    band: np.ndarray  # 95 % prediction interval of each epoch, [2,epochs]
    outside: np.ndarray  # epochs, counted from 1, whose accuracy is outside the band


def published_curves(runs: Runs) -> Iterator[Curve]:
    """Yields the systems that have a published curve and two runs of all its epochs."""
    for name, accuracies in CURVES.items():
        found = [
            [e.val_accuracy for e in run.epochs if e.val_accuracy is not None]
            for run in runs.get(name, {}).values()
        ]
        whole = [ours for ours in found if len(ours) == len(accuracies)]
        if len(whole) < 2:
            continue
        published, ours = np.array(accuracies), np.array(whole)
        low, high = band = np.array([prediction_interval(a)[1:] for a in ours.T]).T
        outside = np.flatnonzero((published < low) | (published > high)) + 1
        yield Curve(name, published, ours, band, outside)


def curves_frame(runs: Runs) -> pd.DataFrame:
    """Returns one row per published curve; see `RULE`."""
    rows = []
    for curve in published_curves(runs):
        seeds, epochs = curve.ours.shape
        distance = curve.published - curve.ours.mean(axis=0)
        variance = curve.ours.var(axis=0, ddof=1) * (1 + 1 / seeds)
        named = ", ".join(map(str, curve.outside))
        rows.append(
            {
                "system": curve.system,
                "seeds": seeds,
                "RMS": f"{np.sqrt(np.mean(distance**2)):.4f}",
                "expected": f"{np.sqrt(variance.mean()):.4f}",
                "outside": f"{len(curve.outside)} of {epochs}"
                + (f": {named}" if named else ""),
            }
        )
    return pd.DataFrame(rows)


def curves_figure(runs: Runs) -> Figure:
    """Plots each published curve over the mean and prediction band of our runs."""
    curves = list(published_curves(runs))
    figure = NotebookFigure(3.4 * len(curves), 3.2)
    (ours, *_), (theirs, *_) = STYLES[:2]
    [row] = figure.subplots(1, len(curves), squeeze=False)
    for axes, curve in zip(row, curves, strict=True):
        epochs = np.arange(len(curve.published)) + 1
        axes.fill_between(epochs, *curve.band, color=ours, alpha=0.2, linewidth=0)
        axes.plot(epochs, curve.ours.mean(axis=0), color=ours)
        axes.plot(epochs, curve.published, "o", color=theirs, markersize=4)
        [marked] = axes.plot(curve.outside, curve.published[curve.outside - 1], "o")
        marked.set(color=theirs, markersize=10, markerfacecolor="none")
        axes.set(title=f"{curve.system}, {len(curve.ours)} seeds", xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    row[0].set_ylabel("test accuracy")
    labels = ["our mean and 95 % prediction band", "published", "outside the band"]
    figure.legend(
        row[0].lines, labels, loc="outside lower center", ncols=3, frameon=False
    )
    return figure
