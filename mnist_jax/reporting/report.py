"""Recorded runs -> one self-contained HTML page, and its pictures as files."""

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
from mnist_jax.errors import InputError
from mnist_jax.records.environment import Environment
from mnist_jax.records.files import make_folder, read_lines, write_file
from mnist_jax.records.schema import DetailsRecord, RunRecord, decode, read_json
from mnist_jax.reporting.plots import (
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
    group_by_row,
    group_by_table,
    history_frame,
    provenance_items,
    row_names,
    title,
)
from mnist_jax.training.run_dir import DETAILS
from mnist_jax.training.sweep import find_runs, read_runs

RESULTS = "compare.jsonl"
PAGE, PICTURES = "report.html", "pictures"

_DRAWN = 6  # networks of a table that have pictures of their own: 3 MB are the limit


class Picture(NamedTuple):
    """A picture of the page, and of a file."""

    name: str  # of the file
    heading: str  # where it stands alone: the network and how many runs
    alt: str
    caption: str
    draw: Callable[[str], Figure]  # from its title


class Network(NamedTuple):
    """What the page shows of the runs of one row."""

    name: str
    result: str
    pictures: list[Picture]


class Section(NamedTuple):
    """What the page shows of the runs of one data set and machine."""

    title: str
    note: str  # empty, or that the data stand in for MNIST
    columns: list[str]
    rows: list[list[tuple[str, float | str]]]  # cells: the text, and what sorts it
    budget: Picture
    networks: list[Network]
    hints: list[str]  # what is missing, and why
    provenance: list[str]


def _sort_value(text: str) -> float | str:
    """Returns what a cell is sorted by: its first number, if it begins with one.

    >>> _sort_value("93,322"), _sort_value("0.9935 ± 0.0002 (n=3)"), _sort_value("cnn")
    (93322.0, 0.9935, 'cnn')
    """
    number = re.match(r"-?\d[\d,]*\.?\d*", text)
    return float(number[0].replace(",", "")) if number else text


def _runs(count: int) -> str:
    """Writes how many runs a picture rests on."""
    return "1 run" if count == 1 else f"{count} runs with different seeds"


def _budget_picture(
    number: int, rows: Sequence[Sequence[RunRecord]], comparison: pd.DataFrame
) -> Picture:
    """Returns accuracy against training time for all networks of a section."""
    runs = {
        name: [budget_frame(run) for run in row]
        for name, row in zip(row_names(rows), rows, strict=True)
    }
    validated = all(run.validation_images for row in rows for run in row)
    if not validated:  # then only what all have is drawn
        runs = {
            name: [
                frame.iloc[-1:].assign(accuracy=run.test_accuracy)
                for frame, run in zip(runs[name], row, strict=True)
            ]
            for name, row in zip(runs, rows, strict=True)
        }
    which = "validation" if validated else "test"
    images = getattr(rows[0][0], f"{which}_images")
    when = "after each epoch" if validated else "at the end"
    compiling = ", ".join(
        f"{name} {seconds}"
        for name, seconds in zip(runs, comparison["compile s"], strict=True)
    )
    n = " or ".join(map(str, sorted({len(row) for row in rows})))
    return Picture(
        f"{number}-accuracy-by-time",
        f"all networks (n={n})",
        "Accuracy against training time, one line per network",
        f"Accuracy on the {images:,} {which} images {when}, against seconds of "
        f"training. Each point is a seed, each line the mean (n={n}). Compiling comes "
        f"once before it and is left out (seconds: {compiling}).",
        lambda title: budget_figure(runs, f"{which} accuracy", title),
    )


def _curve_pictures(name: str, row: Sequence[RunRecord]) -> list[Picture]:
    """Returns loss and accuracy by epoch of the runs of one row."""
    history = pd.concat([history_frame(run) for run in row])
    band = "; the band reaches from the lowest to the highest" if len(row) > 1 else ""
    return [
        Picture(
            quantity,
            f"{name} (n={len(row)})",
            f"{quantity.capitalize()} of {name} by epoch",
            f"{quantity.capitalize()} by epoch, mean of {_runs(len(row))}{band}. "
            "Training is measured while the epoch goes on, validation after it.",
            lambda title, quantity=quantity: curve_figure(  # type: ignore[misc]
                history, quantity, title
            ),
        )
        for quantity in ("loss", "accuracy")
    ]


def detail_pictures(
    name: str, seed: int, details: Sequence[DetailsRecord]
) -> list[Picture]:
    """Returns confusion matrix, worst mistakes and filters of runs of one network.

    Args:
        name: of the network.
        seed: of the first run.
        details: of each run. Counts are summed over the runs; images and filters are
            of the first.

    Raises:
        InputError: a matrix or an image is damaged.
    """
    first = details[0]
    try:
        counts = np.sum([detail.confusion for detail in details], axis=0)
        images = np.array([mistake_image(wrong.pixels) for wrong in first.worst])
        filters = None if first.filters is None else np.array(first.filters)
        if counts.shape != (10, 10) or (filters is not None and filters.ndim != 3):
            raise ValueError("another shape than 10 by 10, or filters that are none")
    except ValueError as error:
        raise InputError(
            f"the details of {name} are damaged ({error}); remove the {DETAILS} of its "
            "run directories, and benchmarks.compare writes them again"
        ) from error
    wrong = int(counts.sum() - np.trace(counts))
    pictures = [
        Picture(
            "confusion",
            f"{name} (n={len(details)})",
            f"Confusion matrix of {name}",
            f"Test images by true and predicted digit, {_runs(len(details))}: "
            f"{wrong:,} of {counts.sum():,} wrong, coloured by how many.",
            lambda title: confusion_figure(counts, title),
        )
    ]
    if len(images):
        captions = [
            f"{w.truth} taken for {w.predicted}\n{w.probability:.1%} sure"
            for w in first.worst
        ]
        indices = ", ".join(str(w.index) for w in first.worst)
        pictures.append(
            Picture(
                "worst",
                f"{name}, seed {seed}",
                f"Test images that {name} gets wrong most confidently",
                "Most confidently wrong test images: the true digit, the predicted one "
                f"and its probability; seed {seed}, test images {indices}.",
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
                f"The {count} filters of the first convolution, {size}x{size}, on one "
                f"scale; seed {seed}.",
                lambda title: filters_figure(filters, title),
            )
        )
    return pictures


def _section(
    number: int,
    records: Sequence[RunRecord],
    known: Mapping[tuple[Any, ...], DetailsRecord],
) -> Section:
    """Returns what the page shows of the records of one data set and machine."""
    rows = group_by_row(records)
    frame = comparison_frame(records)
    networks, hints = [], []
    named = zip(row_names(rows), rows, strict=True)
    for row_number, (name, row) in enumerate(list(named)[:_DRAWN], start=1):
        pictures = _curve_pictures(name, row)
        runs = [run for run in row if run.run_key() in known]
        if runs:
            details = [known[run.run_key()] for run in runs]
            pictures += detail_pictures(name, runs[0].config.seed, details)
        else:
            hints.append(
                f"{name}: no confusion matrix and no images, since its runs were "
                f"recorded without them ({DETAILS}); benchmarks.compare with another "
                "--out records them."
            )
        prefix = f"{number}-{row_number}-{row[0].config.model}"
        result = (
            f"{frame['test accuracy'].iloc[row_number - 1]} of "
            f"{row[0].test_images:,} test images right, "
            f"{row[0].parameters:,} parameters"
        )
        pictures = [p._replace(name=f"{prefix}-{p.name}") for p in pictures]
        networks.append(Network(name, result, pictures))
    if len(rows) > _DRAWN:
        hints.append(
            f"Of {len(rows)} networks the {_DRAWN} most accurate have pictures of "
            "their own."
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
    """Returns the details of the runs below a folder, by `RunRecord.run_key`."""
    details = {}
    # What version 1 of the records wrote: to be dropped with the release after next.
    for number, line in enumerate(read_lines(out / "details.jsonl"), start=1):
        try:
            value = json.loads(line)
            config = decode(TrainConfig, value["config"])
            machine = decode(Environment, value["environment"])
            data = value["checksum"], value["dataset_note"]
            names = ("confusion", "worst", "filters")
            key = (None, config, machine.xla_flags, *data, *machine.compared())
            details[key] = decode(DetailsRecord, {name: value[name] for name in names})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            message = "%s line %d is damaged and is left out (%s)"
            logging.warning(message, out / "details.jsonl", number, error)
    for folder, record in find_runs(out).items():
        if (folder / DETAILS).exists():
            details[record.run_key()] = read_json(DetailsRecord, folder / DETAILS)
    return details


def read_sections(out: Path) -> list[Section]:
    """Reads what `benchmarks.compare` left in a folder.

    Lines that are damaged are left out, as `read_jsonl` does.

    Raises:
        InputError: no run is left, or the details of one contradict themselves.
    """
    records = read_runs(out, RESULTS)
    if not records or not all(record.epochs for record in records):
        raise InputError(
            f"--out={out} holds no usable run in {RESULTS}; run `python -m "
            f"benchmarks.compare --out={out}` first, or give the folder that it filled"
        )
    details = read_details(out)
    return [
        _section(number, group, details)
        for number, group in enumerate(group_by_table(records), start=1)
    ]


class _Image(NamedTuple):
    """A picture as the page holds it: data URIs by theme, size in CSS pixels."""

    sources: dict[str, str]
    width: int
    height: int


def _image(picture: Picture) -> _Image:
    """Draws a picture for light and for dark pages."""
    drawn = {theme: themed_svg(lambda: picture.draw(""), theme) for theme in THEMES}
    points = re.search(rb'width="([\d.]+)pt" height="([\d.]+)pt"', drawn["light"])
    assert points is not None  # Matplotlib's first line has them
    width, height = (round(float(side) * 96 / 72) for side in points.groups())
    sources = {
        theme: f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
        for theme, svg in drawn.items()
    }
    return _Image(sources, width, height)


def format_page(sections: Sequence[Section]) -> str:
    """Writes the page: HTML with everything in it, no other file and no network."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mnist_jax.reporting", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(PAGE).render(sections=sections, image=_image)


def write_report(out: Path) -> Path:
    """Writes the page of a folder's records, and its pictures as PNG and SVG.

    Returns:
        The page's path.

    Raises:
        InputError: as `read_sections`, or a file cannot be written.
    """
    sections = read_sections(out)
    make_folder(out / PICTURES)
    for section in sections:
        own = [picture for network in section.networks for picture in network.pictures]
        for picture in (section.budget, *own):
            figure = picture.draw(f"{picture.heading}, {section.title}")
            for ending in (".png", ".svg"):
                save_figure(figure, out / PICTURES / f"{picture.name}{ending}")
    write_file(out / PAGE, format_page(sections))
    return out / PAGE
