"""Tests of plots: axes, legends and colours."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers.records import make_record
from matplotlib.figure import Figure

from mnist_jax.reporting.comparison_plots import pareto_figure
from mnist_jax.reporting.plots import confusion_figure, history_figure, plain_ticks
from mnist_jax.reporting.tables import history_frame


def test_the_pareto_front_is_filled_and_parameters_are_the_size():
    columns = ["accuracy", "seconds", "parameters", "on_front"]
    rows = [(0.99, 20.0, 100_000, True), (0.98, 30.0, 1_000_000, False)]
    points = pd.DataFrame(rows, columns=columns, index=["cnn", "mlp"])
    [axes] = pareto_figure(points).axes
    front, _, behind, _, _ = axes.lines
    assert axes.get_xscale() == "log"
    assert (front.get_xdata()[0], front.get_ydata()[0]) == (20.0, 0.99)
    assert front.get_markerfacecolor() == front.get_color()
    assert behind.get_markerfacecolor() == "none"
    assert front.get_markersize() < behind.get_markersize()
    names = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert names[0] == "cnn, 100,000 parameters"


def test_a_matrix_without_mistakes_is_drawn():
    figure = confusion_figure(np.eye(10, dtype=int))
    assert [text.get_text() for text in figure.axes[0].texts] == ["1"] * 10


def test_cells_with_more_mistakes_are_darker():
    counts = np.diag([9, 9, 9])
    counts[0] = [9, 1, 2]
    counts[1, 0] = 40
    [image] = confusion_figure(counts, ("a", "b", "c")).axes[0].images
    shades = np.asarray(image.get_array())
    assert shades[2, 0] == 0 < shades[0, 1] < shades[0, 2] < shades[1, 0]


@pytest.mark.parametrize(
    "low, high", [(0.61, 1.1), (2, 9), (0.04, 3), (1.5, 1.6), (3e-6, 2e4)]
)
def test_logarithmic_axes_have_four_plain_labels_or_more(low, high):
    axes = Figure().subplots()
    axes.plot([low, high], [low, high])
    axes.set_yscale("log")
    plain_ticks(axes.yaxis)
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert 4 <= len(labels) <= 12
    assert [f"{float(text):g}" for text in labels] == labels


def test_legends_are_beside_the_data():
    figure = history_figure(history_frame(make_record()))
    figure.draw_without_rendering()
    for axes in figure.axes:
        legend = axes.get_legend().get_window_extent()
        assert legend.y0 >= axes.bbox.y1 and legend.x1 <= figure.bbox.x1


def test_pictures_need_no_backend(tmp_path):
    code = (
        "import benchmarks.published.curves\n"
        "from mnist_jax.reporting.plots import NotebookFigure, save_figure\n"
        "from pathlib import Path\n"
        f"save_figure(NotebookFigure(), Path({str(tmp_path / 'empty.png')!r}))\n"
    )
    # As a notebook's kernel sets it for the programs that it starts.
    environment = {**os.environ, "MPLBACKEND": "module://not_installed.backend_inline"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
