"""Tests of plots: axes, legends, colours, text."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from helpers.records import make_epochs, make_record, recorded_runs, rows_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mnist_jax.data.published import SETS
from mnist_jax.data.types import Dataset
from mnist_jax.reporting import plots
from mnist_jax.reporting.pictures import comparison_pictures
from mnist_jax.reporting.predictions import prediction_frame
from mnist_jax.reporting.tables import budget_frame, history_frame

RECORDS = recorded_runs()


def drawn_lines(axes: Axes) -> list[Line2D]:
    """Returns the lines of the data, without those of the legend."""
    return [line for line in axes.lines if len(line.get_xdata())]


def test_curves_plot_means_and_budgets_plot_every_seed():
    mlp = [record for record in RECORDS if record.config.model == "mlp"]
    frames = [history_frame(record) for record in mlp]
    line = plots.history_figure(pd.concat(frames)).axes[0].lines[0]
    np.testing.assert_allclose(
        line.get_ydata(), np.mean([frame["loss"] for frame in frames], axis=0)
    )
    _, points = drawn_lines(plots.budget_figure({"mlp": mlp}).axes[0])
    assert len(points.get_xdata()) == sum(map(len, frames))
    assert budget_frame(mlp[0])["seconds"].is_monotonic_increasing


def test_history_without_validation_is_plotted():
    epoch = dataclasses.replace(make_epochs(1)[0], val_loss=None, val_accuracy=None)
    record = dataclasses.replace(make_record(), epochs=[epoch])
    figure = plots.history_figure(history_frame(record))
    assert [len(axes.lines) for axes in figure.axes] == [1, 1]


def test_the_plot_of_a_sweep_is_legible():
    base, changes = RECORDS[0], dict(optimizer="adamw", hidden=(512, 256, 128))
    sweep = [
        dataclasses.replace(
            base,
            test_accuracy=0.99 - 0.001 * number,
            config=dataclasses.replace(
                base.config, **changes, learning_rate=1e-3 * (1 + number)
            ),
        )
        for number in range(14)
    ]
    pictures = comparison_pictures(rows_of(sweep), [])
    budget, pareto = (picture.figure for picture in pictures)
    for figure in (budget, pareto):
        plots.set_title(figure, "all networks, MNIST on a CPU" * 4)
        assert_legible(figure)
    [legend] = budget.legends
    named = legend.get_lines()
    names = [text.get_text() for text in legend.get_texts()]
    assert names[0] == "mlp learning_rate=0.001" and len(set(names)) == len(named) == 12
    styles = {(line.get_color(), line.get_linestyle()) for line in named}
    marks = {(line.get_color(), line.get_marker()) for line in named}
    assert len(styles) == len(marks) == 12
    assert len(pareto.legends[0].get_lines()) == 12


def assert_legible(figure: Figure) -> None:
    """Asserts that title and legend are within the figure, beside the axes."""
    figure.draw_without_rendering()
    [axes], [legend] = figure.axes, figure.legends
    boxes = [part.get_window_extent() for part in (figure, figure._suptitle, legend)]
    assert not legend.get_window_extent().overlaps(axes.get_tightbbox())
    for box in boxes[1:]:
        assert box.x0 >= 0 and box.x1 <= boxes[0].x1 and box.y0 >= 0


def test_targets_are_marked_where_all_runs_have_a_validation_set():
    rows = rows_of(RECORDS)
    [axes] = next(comparison_pictures(rows, [0.98, 0.999])).figure.axes
    dashed = [line for line in axes.lines if line.get_color() == "#808080"]
    assert [line.get_ydata()[0] for line in dashed] == [0.98, 0.999]
    assert [text.get_text() for text in axes.texts] == ["0.98", "0.999"]
    config = dataclasses.replace(RECORDS[0].config, validation="test")
    rows["other"] = [dataclasses.replace(RECORDS[0], config=config)]
    assert [p.name for p in comparison_pictures(rows, [])] == ["pareto-front"]


def test_the_pareto_front_is_filled_and_parameters_are_the_size():
    columns = ["accuracy", "seconds", "parameters", "on_front"]
    rows = [(0.99, 20.0, 100_000, True), (0.98, 30.0, 1_000_000, False)]
    points = pd.DataFrame(rows, columns=columns, index=["cnn", "mlp"])
    [axes] = plots.pareto_figure(points).axes
    front, behind = drawn_lines(axes)
    assert axes.get_xscale() == "log"
    assert (front.get_xdata()[0], front.get_ydata()[0]) == (20.0, 0.99)
    assert front.get_markerfacecolor() == front.get_color()
    assert behind.get_markerfacecolor() == "none"
    assert front.get_markersize() < behind.get_markersize()
    names = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert names[0] == "cnn, 100,000 parameters"


def test_cells_with_more_mistakes_are_darker():
    counts = np.array([[9, 1, 2], [40, 9, 0], [0, 0, 9]])
    [image] = plots.confusion_figure(counts, ("a", "b", "c")).axes[0].images
    shades = np.asarray(image.get_array())
    assert shades[2, 0] == 0 < shades[0, 1] < shades[0, 2] < shades[1, 0]
    figure = plots.confusion_figure(np.eye(10, dtype=int))  # without mistakes
    assert [text.get_text() for text in figure.axes[0].texts] == ["1"] * 10


@pytest.mark.parametrize("low, high", [(0.61, 1.1), (0.04, 3), (1.5, 1.6), (3e-6, 2e4)])
def test_logarithmic_axes_have_plain_labels(low, high):
    axes = Figure().subplots()
    axes.plot([low, high], [low, high])
    axes.set_yscale("log")
    plots.plain_ticks(axes.yaxis)
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert 3 <= len(labels) <= 12
    assert [f"{float(text):g}" for text in labels] == labels


def test_predictions_of_many_images_are_drawn_in_part(
    digits: Dataset, monkeypatch, tmp_path
):
    # 100 images would take 10 s to draw.
    assert plots.MAX_PREDICTIONS <= 20
    monkeypatch.setattr(plots, "MAX_PREDICTIONS", 2)
    frame = prediction_frame(np.eye(10)[[7, 7, 7]], np.array([9, 9, 9]))
    names = SETS["fashion_mnist"].class_names
    figure = plots.predictions_figure(digits.test.images[:3], frame, names)
    left, right, *others = (axes.get_title() for axes in figure.axes)
    assert left == "test image 0\ntrue Ankle boot" and right == "predicted Sneaker"
    assert len(others) == 2
    for name in ("a.png", "a.svg"):
        plots.save_figure(figure, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 2_000
