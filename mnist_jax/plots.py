"""Records, images and predictions -> pictures."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from mnist_jax.errors import InputError
from mnist_jax.files import write_file

# Two of the colours that Okabe and Ito chose for colour-blind eyes; they also differ in
# print. Source: Okabe & Ito, "Color Universal Design" (2008).
_TRAIN, _VALIDATION = "#0072B2", "#D55E00"
FORMATS = (".png", ".svg", ".pdf")


def history_figure(history: pd.DataFrame, title: str = "") -> Figure:
    """Draws loss and accuracy by epoch, with validation where there is one.

    Args:
        history: as `history_frame` returns it.
        title: above the picture.
    """
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = (("loss", "cross-entropy"), ("accuracy", "accuracy"))
    for axes, (name, label) in zip(figure.subplots(1, 2), panels, strict=True):
        axes.plot(history["epoch"], history[name], "o-", color=_TRAIN, label="training")
        validation = history[f"val_{name}"].astype(float)
        if validation.notna().any():
            axes.plot(
                history["epoch"],
                validation,
                "s--",
                color=_VALIDATION,
                label="validation",
            )
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    return figure


def digits_figure(
    images: np.ndarray, captions: Sequence[object] | np.ndarray
) -> Figure:
    """Draws images `[N,28,28]` in rows of up to ten, each under its caption."""
    columns = min(len(images), 10)
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.1 * columns, 1.35 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, caption in zip(grid, images, captions, strict=False):
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=255)
        axes.set_title(str(caption), fontsize=9)
    return figure


def predictions_figure(images: np.ndarray, predictions: pd.DataFrame) -> Figure:
    """Draws each image `[N,28,28]` beside its ten probabilities.

    Args:
        images: uint8.
        predictions: as `prediction_frame` returns them, indexed by the image's place
            in the test set, or by the name of its file where its truth is not known.
    """
    count = len(images)
    figure = Figure(figsize=(5, 1.8 * count), layout="constrained")
    grid = figure.subplots(count, 2, squeeze=False, width_ratios=(1, 2))
    for (left, right), image, (place, row) in zip(
        grid, images, predictions.iterrows(), strict=True
    ):
        left.imshow(image, cmap="gray_r", vmin=0, vmax=255)
        left.axis("off")
        if pd.notna(row.get("truth")):
            caption = f"test image {place}, a {row['truth']:.0f}"
        else:
            caption = _short(place)
        left.set_title(caption, fontsize=9, parse_math=False)
        right.bar(range(10), [row[f"p{digit}"] for digit in range(10)], color=_TRAIN)
        right.set(xticks=range(10), ylim=(0, 1), ylabel="probability")
        right.set_title(f"predicted {row['predicted']:.0f}", fontsize=9)
    return figure


def _short(path: object) -> str:
    """Returns a file's name, cut in the middle where it is long."""
    name = Path(str(path)).name
    return name if len(name) <= 24 else f"{name[:12]}…{name[-11:]}"


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a picture in the form that its name's ending says.

    Raises:
        InputError: the ending is none of `FORMATS`, or the file cannot be written.
    """
    if path.suffix not in FORMATS:
        raise InputError(
            f"a picture's name must end in one of {', '.join(FORMATS)}; got {path}"
        )
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=path.suffix[1:])
    write_file(path, picture.getvalue())
