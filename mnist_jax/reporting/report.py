"""Writes recorded runs as a self-contained HTML page, and its pictures as files."""

import base64
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Shapes
from mnist_jax.errors import InputError
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import DetailsRecord, RunRecord, read_json
from mnist_jax.reporting.pictures import (
    DRAWN,
    Picture,
    budget_picture,
    curve_pictures,
    detail_pictures,
    pareto_picture,
)
from mnist_jax.reporting.plots import save_figure, set_title
from mnist_jax.reporting.sweep_tables import SweepSection, read_sweep
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
from mnist_jax.training.results import find_runs, read_runs
from mnist_jax.training.run_dir import DETAILS

RESULTS = "compare.jsonl"
PAGE, PICTURES = "report.html", "pictures"


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
    provenance: list[str]


def _section(
    number: int,
    records: Sequence[RunRecord],
    details_by_run: Mapping[tuple[Any, ...], DetailsRecord],
    targets: Sequence[float],
    against: TrainConfig | None,
) -> Section:
    """Returns the page's content for the records of one dataset and machine."""
    compared = comparison_frame(records, targets, against)
    frame = format_comparison(compared)
    rows = dict(zip(row_names(compared), group_by_row(records), strict=True))
    comparisons = [budget_picture(number, rows, targets)]
    if len(rows) > 1:
        comparisons.append(pareto_picture(number, rows))
    networks, hints = [], []
    for row_number, (name, row) in enumerate([*rows.items()][:DRAWN], start=1):
        pictures = curve_pictures(name, row)
        runs = [run for run in row if run.timing_key() in details_by_run]
        if runs:
            details = [details_by_run[run.timing_key()] for run in runs]
            shapes = Shapes(row[0].image_shape, row[0].classes)
            pictures += detail_pictures(
                name, runs[0].config.seed, details, row[0].dataset, shapes
            )
        else:
            hints.append(f"{name}: its runs were recorded without {DETAILS}.")
        prefix = f"{number}-{row_number}-{row[0].config.name}"
        result = (
            f"test accuracy {frame['test accuracy'].iloc[row_number - 1]} on "
            f"{row[0].test_images:,} images, "
            f"{row[0].parameters:,} parameters"
        )
        pictures = [p._replace(name=f"{prefix}-{p.name}") for p in pictures]
        networks.append(Network(name, result, pictures))
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
        comparisons,
        networks,
        hints,
        column_notes(compared, against) + table_notes(records),
    )


def read_details(out: Path) -> dict[tuple[Any, ...], DetailsRecord]:
    """Returns the details of all runs under a folder, by `RunRecord.timing_key`."""
    details = {}
    for folder, record in find_runs(out).items():
        if (folder / DETAILS).exists():
            remedy = "delete it and rerun benchmarks.compare to rewrite it"
            read = read_json(DetailsRecord, folder / DETAILS, remedy)
            details[record.timing_key()] = read
    return details


def read_sections(
    out: Path, targets: Sequence[float] = (), against: TrainConfig | None = None
) -> list[Section]:
    """Reads the output folder of `benchmarks.compare` or of a sweep.

    Arguments are as for `write_tables`.

    Raises:
        InputError: there is no usable run, or the details of a run are damaged.
    """
    records = read_runs(out)
    if not records or not all(record.epochs for record in records):
        raise InputError(
            f"--out={out} holds no usable run; run `python -m "
            f"benchmarks.compare {shlex.quote(f'--out={out}')}` first, or give its "
            "output folder"
        )
    details = read_details(out)
    return [
        _section(number, group, details, targets, against)
        for number, group in enumerate(group_by_table(records), start=1)
    ]


class _Image(NamedTuple):
    """A picture embedded in the page: data URI, size in CSS pixels."""

    source: str
    width: int
    height: int


def _image(picture: Picture, title: str, folder: Path) -> _Image:
    """Draws a picture, writes it as PNG and SVG, and returns the SVG for the page."""
    figure, path = picture.draw(), folder / f"{picture.name}.svg"
    set_title(figure, f"{picture.heading}, {title}")
    save_figure(figure, path.with_suffix(".png"))
    save_figure(figure, path)
    svg = base64.b64encode(path.read_bytes()).decode()
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return _Image(f"data:image/svg+xml;base64,{svg}", width, height)


def format_page(
    sections: Sequence[Section],
    sweep: SweepSection | None,
    images: Mapping[str, _Image],
) -> str:
    """Returns the page as self-contained HTML, without links to other resources.

    Args:
        sections: of each dataset and machine.
        sweep: of the folder, if any.
        images: by the names of the pictures.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mnist_jax.reporting", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(PAGE).render(
        sections=sections, sweep=sweep, images=images
    )


def write_report(
    out: Path, targets: Sequence[float] = (), against: TrainConfig | None = None
) -> Path:
    """Writes the page for a folder's records, and its pictures as PNG and SVG.

    In the folder of a sweep it begins with the sweep.

    Args:
        out: the folder.
        targets: validation accuracies to mark, as returned by `check_targets`.
        against: as for `comparison_frame`.

    Returns:
        The path of the page.

    Raises:
        InputError: see `read_sections`.
    """
    sections, sweep = read_sections(out, targets, against), read_sweep(out)
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    pictures = [(p, sections[0].title) for p in (sweep.pictures if sweep else [])]
    for section in sections:
        networks = [p for network in section.networks for p in network.pictures]
        pictures += [(p, section.title) for p in (*section.comparisons, *networks)]
    images = {p.name: _image(p, title, out / PICTURES) for p, title in pictures}
    write_file(out / PAGE, format_page(sections, sweep, images))
    return out / PAGE
