"""Writes recorded runs as a self-contained HTML page, and its pictures as files."""

import base64
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from absl import logging
from matplotlib.figure import Figure

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import DIGITS, class_names
from mnist_jax.errors import InputError
from mnist_jax.records.environment import Environment
from mnist_jax.records.files import make_folder, read_lines, write_file
from mnist_jax.records.schema import DetailsRecord, RunRecord, decode, read_json
from mnist_jax.reporting.plots import (
    MAX_NAMED,
    THEMES,
    budget_figure,
    confusion_figure,
    curve_figure,
    digits_figure,
    filters_figure,
    save_figure,
    themed_svg,
)
from mnist_jax.reporting.predictions import mistake_image
from mnist_jax.reporting.tables import (
    budget_frame,
    comparison_frame,
    format_comparison,
    group_by_row,
    group_by_table,
    history_frame,
    provenance_items,
    row_names,
    title,
)
from mnist_jax.training.run_dir import DETAILS
from mnist_jax.training.study import find_runs, read_runs

RESULTS = "compare.jsonl"
PAGE, PICTURES = "report.html", "pictures"

_DRAWN = 6  # networks per table with their own pictures; the page must stay below 3 MB


class Picture(NamedTuple):
    """A picture in the page, also written to a file."""

    name: str  # stem of the file
    heading: str  # title in the file: the network and the number of runs
    alt: str
    caption: str
    draw: Callable[[str], Figure]  # takes the title


class Network(NamedTuple):
    """The page's content for one row of a table."""

    name: str
    result: str
    pictures: list[Picture]


class Section(NamedTuple):
    """The page's content for one dataset and machine."""

    title: str
    note: str  # empty, or a warning that the data is not MNIST
    columns: list[str]
    rows: list[list[tuple[str, float | str]]]  # cells: text and sort key
    budget: Picture
    networks: list[Network]
    hints: list[str]  # which pictures are missing, and why
    provenance: list[str]


def _sort_value(text: str) -> float | str:
    """Returns the sort key of a cell: its leading number, or else its text.

    >>> _sort_value("93,322"), _sort_value("0.9935 ± 0.0002 (n=3)"), _sort_value("cnn")
    (93322.0, 0.9935, 'cnn')
    """
    number = re.match(r"-?\d[\d,]*\.?\d*", text)
    return float(number[0].replace(",", "")) if number else text


def _runs(count: int) -> str:
    """Formats the number of runs."""
    return "1 run" if count == 1 else f"{count} runs with different seeds"


def _budget_picture(
    number: int, rows: Sequence[Sequence[RunRecord]], comparison: pd.DataFrame
) -> Picture:
    """Returns a plot of accuracy against training time for all networks."""
    runs = {
        name: [budget_frame(run) for run in row]
        for name, row in zip(row_names(rows), rows, strict=True)
    }
    validated = all(run.validation_images for row in rows for run in row)
    if not validated:  # plot the test accuracy, which all runs have
        runs = {
            name: [
                frame.iloc[-1:].assign(accuracy=run.test_accuracy)
                for frame, run in zip(runs[name], row, strict=True)
            ]
            for name, row in zip(runs, rows, strict=True)
        }
    split = "validation" if validated else "test"
    images = getattr(rows[0][0], f"{split}_images")
    when = "after each epoch" if validated else "at the end"
    compiling = ""
    if len(runs) <= _DRAWN:  # the table has them all
        named = zip(runs, comparison["compile s"], strict=True)
        listing = ", ".join(f"{name} {seconds}" for name, seconds in named)
        compiling = f" (seconds: {listing})"
    n = " or ".join(map(str, sorted({len(row) for row in rows})))
    unnamed = ""
    if len(runs) > MAX_NAMED:
        unnamed = f" Grey are all but the {MAX_NAMED} most accurate networks."
    return Picture(
        f"{number}-accuracy-by-time",
        f"all networks (n={n})",
        "Accuracy against training time, one line per network",
        f"Accuracy on the {images:,} {split} images {when}, against training time. "
        f"Points are seeds, lines are means (n={n}).{unnamed} Compile time is "
        f"excluded{compiling}.",
        lambda title: budget_figure(runs, f"{split} accuracy", title),
    )


def _curve_pictures(name: str, row: Sequence[RunRecord]) -> list[Picture]:
    """Returns plots of loss and accuracy by epoch for the runs of one row."""
    history = pd.concat([history_frame(run) for run in row])
    band = "; the band spans min to max" if len(row) > 1 else ""
    return [
        Picture(
            quantity,
            f"{name} (n={len(row)})",
            f"{quantity.capitalize()} of {name} by epoch",
            f"{quantity.capitalize()} by epoch, mean of {_runs(len(row))}{band}. "
            "Training metrics are measured during the epoch, validation after it.",
            lambda title, quantity=quantity: curve_figure(  # type: ignore[misc]
                history, quantity, title
            ),
        )
        for quantity in ("loss", "accuracy")
    ]


def detail_pictures(
    name: str, seed: int, details: Sequence[DetailsRecord], dataset: str
) -> list[Picture]:
    """Returns the confusion matrix, worst mistakes and filters of one network.

    Args:
        name: name of the network.
        seed: seed of the first run.
        details: details of each run. Confusion counts are summed over the runs; images
            and filters are from the first run.
        dataset: name of the dataset, for the names of its classes.

    Raises:
        InputError: a matrix or an image is damaged.
    """
    first, classes = details[0], class_names(dataset)
    try:
        counts = np.sum([detail.confusion for detail in details], axis=0)
        images = np.array([mistake_image(wrong.pixels) for wrong in first.worst])
        filters = None if first.filters is None else np.array(first.filters)
        if counts.shape != (10, 10) or (filters is not None and filters.ndim != 3):
            raise ValueError("confusion matrix is not 10x10, or filters are not 3-D")
        separator = ", " if classes == DIGITS else "\n"  # long names need a line each
        captions = [
            f"true {classes[w.truth]}{separator}pred {classes[w.predicted]}\n"
            f"{w.probability:.1%}"
            for w in first.worst
        ]
    except (ValueError, IndexError) as error:
        raise InputError(
            f"the details of {name} are damaged ({error}); delete {DETAILS} in its run "
            "directories and rerun benchmarks.compare to rewrite it"
        ) from error
    wrong = int(counts.sum() - np.trace(counts))
    pictures = [
        Picture(
            "confusion",
            f"{name} (n={len(details)})",
            f"Confusion matrix of {name}",
            f"Test images by true and predicted class, {_runs(len(details))}: "
            f"{wrong:,} of {counts.sum():,} wrong; darker is more mistakes.",
            lambda title: confusion_figure(counts, title, classes),
        )
    ]
    if len(images):
        indices = ", ".join(str(w.index) for w in first.worst)
        pictures.append(
            Picture(
                "worst",
                f"{name}, seed {seed}",
                f"Most confidently misclassified test images of {name}",
                "Most confidently misclassified test images: true class, predicted "
                f"class and its probability; seed {seed}, test images {indices}.",
                lambda title: digits_figure(images, captions, 4, title),
            )
        )
    if filters is not None:
        size, _, count = filters.shape
        pictures.append(
            Picture(
                "filters",
                f"{name}, seed {seed}",
                f"First filters of {name}",
                f"The {count} {size}x{size} filters of the first convolution, on a "
                f"common scale; seed {seed}.",
                lambda title: filters_figure(filters, title),
            )
        )
    return pictures


def _section(
    number: int,
    records: Sequence[RunRecord],
    details_by_run: Mapping[tuple[Any, ...], DetailsRecord],
) -> Section:
    """Returns the page's content for the records of one dataset and machine."""
    rows = group_by_row(records)
    frame = format_comparison(comparison_frame(records))
    networks, hints = [], []
    named = zip(row_names(rows), rows, strict=True)
    for row_number, (name, row) in enumerate(list(named)[:_DRAWN], start=1):
        pictures = _curve_pictures(name, row)
        runs = [run for run in row if run.run_key() in details_by_run]
        if runs:
            details = [details_by_run[run.run_key()] for run in runs]
            pictures += detail_pictures(
                name, runs[0].config.seed, details, row[0].dataset
            )
        else:
            hints.append(
                f"{name}: no confusion matrix or images, because its runs were "
                f"recorded without them ({DETAILS}); benchmarks.compare with another "
                "--out records them."
            )
        prefix = f"{number}-{row_number}-{row[0].config.name}"
        result = (
            f"test accuracy {frame['test accuracy'].iloc[row_number - 1]} on "
            f"{row[0].test_images:,} images, "
            f"{row[0].parameters:,} parameters"
        )
        pictures = [p._replace(name=f"{prefix}-{p.name}") for p in pictures]
        networks.append(Network(name, result, pictures))
    if len(rows) > _DRAWN:
        hints.append(
            f"Only the {_DRAWN} most accurate of {len(rows)} networks have their own "
            "pictures."
        )
    return Section(
        title(records[0]),
        records[0].dataset_note,
        list(frame.columns),
        [[(str(c), _sort_value(str(c))) for c in row] for row in frame.to_numpy()],
        _budget_picture(number, rows, frame),
        networks,
        hints,
        provenance_items(records),
    )


def read_details(out: Path) -> dict[tuple[Any, ...], DetailsRecord]:
    """Returns the details of all runs under a folder, by `RunRecord.run_key`."""
    details = {}
    # Written by version 1 of the records; to be removed in the release after next.
    for number, line in enumerate(read_lines(out / "details.jsonl"), start=1):
        try:
            value = json.loads(line)
            config = decode(TrainConfig, value["config"])
            machine = decode(Environment, value["environment"])
            data = value["checksum"], value["dataset_note"]
            names = ("confusion", "worst", "filters")
            key = (None, config, None, machine.xla_flags, *data, *machine.compared())
            details[key] = decode(DetailsRecord, {name: value[name] for name in names})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            message = "%s line %d is damaged and is left out (%s)"
            logging.warning(message, out / "details.jsonl", number, error)
    for folder, record in find_runs(out).items():
        if (folder / DETAILS).exists():
            remedy = "delete it and rerun benchmarks.compare to rewrite it"
            read = read_json(DetailsRecord, folder / DETAILS, remedy)
            details[record.run_key()] = read
    return details


def read_sections(out: Path) -> list[Section]:
    """Reads the output folder of `benchmarks.compare`.

    Damaged lines are skipped with a warning, as by `read_jsonl`.

    Raises:
        InputError: there is no usable run, or the details of a run are damaged.
    """
    records = read_runs(out, RESULTS)
    if not records or not all(record.epochs for record in records):
        raise InputError(
            f"--out={out} holds no usable run in {RESULTS}; run `python -m "
            f"benchmarks.compare --out={out}` first, or give its output folder"
        )
    details = read_details(out)
    return [
        _section(number, group, details)
        for number, group in enumerate(group_by_table(records), start=1)
    ]


class _Image(NamedTuple):
    """A picture embedded in the page: data URIs by theme, size in CSS pixels."""

    sources: dict[str, str]
    width: int
    height: int


def _image(picture: Picture) -> _Image:
    """Draws a picture in the light and the dark theme."""
    drawn = {theme: themed_svg(lambda: picture.draw(""), theme) for theme in THEMES}
    points = re.search(rb'width="([\d.]+)pt" height="([\d.]+)pt"', drawn["light"])
    assert points is not None  # always present in Matplotlib's SVG
    width, height = (round(float(side) * 96 / 72) for side in points.groups())
    sources = {
        theme: f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
        for theme, svg in drawn.items()
    }
    return _Image(sources, width, height)


def format_page(sections: Sequence[Section]) -> str:
    """Returns the page as self-contained HTML, without links to other resources."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mnist_jax.reporting", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(PAGE).render(sections=sections, image=_image)


def write_report(out: Path) -> Path:
    """Writes the page for a folder's records, and its pictures as PNG and SVG.

    Returns:
        The path of the page.

    Raises:
        InputError: see `read_sections`, or a file cannot be written.
    """
    sections = read_sections(out)
    make_folder(out / PICTURES)
    for section in sections:
        pictures = [
            picture for network in section.networks for picture in network.pictures
        ]
        for picture in (section.budget, *pictures):
            figure = picture.draw(f"{picture.heading}, {section.title}")
            for suffix in (".png", ".svg"):
                save_figure(figure, out / PICTURES / f"{picture.name}{suffix}")
    write_file(out / PAGE, format_page(sections))
    return out / PAGE
