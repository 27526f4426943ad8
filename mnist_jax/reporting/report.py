"""Writes recorded runs as a self-contained HTML page, and its pictures as files."""

import base64
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Shapes
from mnist_jax.errors import InputError
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import DetailsRecord, RunRecord, read_json
from mnist_jax.reporting.pictures import (
    Picture,
    comparison_pictures,
    curve_pictures,
    detail_pictures,
)
from mnist_jax.reporting.plots import save_figure, set_title
from mnist_jax.reporting.sweep_tables import read_sweep
from mnist_jax.reporting.tables import (
    column_notes,
    comparison_frame,
    format_comparison,
    group_by_row,
    group_by_table,
    row_names,
    sort_value,
    table_notes,
    title,
)
from mnist_jax.training.results import find_runs
from mnist_jax.training.run_dir import DETAILS

RESULTS = "compare.jsonl"
PAGE, PICTURES = "report.html", "pictures"
DRAWN = 6  # networks per table with their own pictures; the page must stay below 3 MB

Details = Mapping[tuple[Any, ...], DetailsRecord]  # of runs, by `RunRecord.timing_key`


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
    comparisons: list[Picture]  # of all networks
    networks: list[Network]
    hints: list[str]  # which pictures are missing, and why
    notes: list[str]


def _numbered(number: object, pictures: Sequence[Picture]) -> list[Picture]:
    """Prefixes the names of pictures, which are those of their files."""
    return [picture._replace(name=f"{number}-{picture.name}") for picture in pictures]


def _section(
    number: int,
    records: Sequence[RunRecord],
    details: Details,
    targets: Sequence[float],
    against: TrainConfig | None,
) -> Section:
    """Returns the page's content for the records of one dataset and machine."""
    compared = comparison_frame(records, targets, against)
    frame = format_comparison(compared)
    rows = dict(zip(row_names(compared), group_by_row(records), strict=True))
    networks, hints = [], []
    for row_number, (name, row) in enumerate([*rows.items()][:DRAWN], start=1):
        first, pictures = row[0], curve_pictures(name, row)
        if runs := [run for run in row if run.timing_key() in details]:
            pictures += detail_pictures(
                name,
                runs[0].config.seed,
                [details[run.timing_key()] for run in runs],
                first.dataset,
                Shapes(first.image_shape, first.classes),
            )
        else:
            hints.append(f"{name}: its runs were recorded without {DETAILS}.")
        result = (
            f"test accuracy {frame['test accuracy'][row_number - 1]} on "
            f"{first.test_images:,} images, {first.parameters:,} parameters"
        )
        prefix = f"{number}-{row_number}-{first.config.name}"
        networks.append(Network(name, result, _numbered(prefix, pictures)))
    if len(rows) > DRAWN:
        hints.append(
            f"Only the {DRAWN} most accurate of {len(rows)} networks have their own "
            "pictures."
        )
    return Section(
        title(records[0]),
        records[0].dataset_note,
        list(frame.columns),
        [[(str(c), sort_value(str(c))) for c in row] for row in frame.to_numpy()],
        _numbered(number, comparison_pictures(rows, targets)),
        networks,
        hints,
        column_notes(compared, against) + table_notes(records),
    )


class _Image(NamedTuple):
    """A picture embedded in the page: data URI, size in CSS pixels."""

    source: str
    width: int
    height: int


def _draw(folder: Path, picture: Picture, title: str) -> _Image:
    """Draws a picture, writes it as PNG and SVG, and returns the SVG for the page."""
    figure, path = picture.draw(), folder / f"{picture.name}.svg"
    set_title(figure, f"{picture.heading}, {title}")
    save_figure(figure, path.with_suffix(".png"))
    save_figure(figure, path)
    svg = base64.b64encode(path.read_bytes()).decode()
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return _Image(f"data:image/svg+xml;base64,{svg}", width, height)


def write_report(
    out: Path, targets: Sequence[float] = (), against: TrainConfig | None = None
) -> Path:
    """Writes the page for a folder's records, and its pictures as PNG and SVG.

    The page is self-contained. In the folder of a sweep it begins with the sweep.

    Args:
        out: the output folder of `benchmarks.compare` or of a sweep.
        targets: validation accuracies to mark, as returned by `check_targets`.
        against: as for `comparison_frame`.

    Returns:
        The path of the page.
    """
    runs = find_runs(out)
    if not runs:
        raise InputError(
            f"--out={out} holds no usable run; run `python -m "
            f"benchmarks.compare {shlex.quote(f'--out={out}')}` first, or give its "
            "output folder"
        )
    remedy = "delete it and rerun benchmarks.compare to rewrite it"
    details = {
        run.timing_key(): read_json(DetailsRecord, folder / DETAILS, remedy)
        for folder, run in runs.items()
        if (folder / DETAILS).exists()
    }
    sections = [
        _section(number, group, details, targets, against)
        for number, group in enumerate(group_by_table(runs.values()), start=1)
    ]
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mnist_jax.reporting", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(PAGE).render(
        sections=sections, sweep=read_sweep(out), draw=partial(_draw, out / PICTURES)
    )
    write_file(out / PAGE, page)
    return out / PAGE
