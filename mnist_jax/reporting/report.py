"""Writes recorded runs as a self-contained HTML page, and its pictures as files."""

import base64
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
from mnist_jax.reporting.plots import MAX_NAMED, save_figure, set_title
from mnist_jax.reporting.sweep_tables import read_sweep
from mnist_jax.reporting.tables import (
    column_notes,
    comparison_frame,
    format_comparison,
    group_by_row,
    group_by_table,
    row_names,
    table_notes,
    title,
)
from mnist_jax.training.run_dir import DETAILS, find_runs

RESULTS = "compare.jsonl"
PAGE, PICTURES = "report.html", "pictures"
DRAWN = 6  # networks per table with their own pictures; the page must stay below 3 MB

Details = Mapping[str, DetailsRecord]  # by the sha256 of the parameters


def _numbered(number: object, pictures: Sequence[Picture]) -> list[Picture]:
    """Prefixes the names of pictures, which are those of their files."""
    return [picture._replace(name=f"{number}-{picture.name}") for picture in pictures]


def _section(
    number: int,
    records: Sequence[RunRecord],
    details: Details,
    targets: Sequence[float],
    against: TrainConfig | None,
) -> dict[str, Any]:
    """Returns the page's content for the records of one dataset and machine."""
    compared = comparison_frame(records, targets, against)
    table = format_comparison(compared)
    rows = dict(zip(row_names(compared), group_by_row(records), strict=True))
    networks, hints = [], []
    for row_number, (name, row) in enumerate([*rows.items()][:DRAWN], start=1):
        first, pictures = row[0], curve_pictures(name, row)
        if runs := [run for run in row if run.params_sha256 in details]:
            pictures += detail_pictures(
                name,
                runs[0].config.seed,
                [details[run.params_sha256] for run in runs],
                Shapes(first.image_shape, first.classes),
            )
        else:
            hints.append(f"{name}: its runs were recorded without {DETAILS}.")
        result = (
            f"test accuracy {table['test accuracy'][row_number - 1]} on "
            f"{first.test_images:,} images, {first.parameters:,} parameters"
        )
        numbered = _numbered(f"{number}-{row_number}-{first.config.name}", pictures)
        networks.append({"name": name, "result": result, "pictures": numbered})
    if len(rows) > DRAWN:
        hints.append(
            f"Of {len(rows)} networks the {DRAWN} most accurate have their own "
            f"pictures, and the {MAX_NAMED} most accurate are compared."
        )
    return {
        "title": title(records[0]),
        "note": records[0].dataset_note,
        "table": table,
        "comparisons": _numbered(number, comparison_pictures(rows, targets)),
        "networks": networks,
        "hints": hints,
        "notes": column_notes(compared) + table_notes(records),
    }


def _draw(folder: Path, picture: Picture, title: str) -> tuple[str, int, int]:
    """Draws a picture and writes it as PNG and SVG.

    Returns:
        A data URI with the SVG, its width and height in CSS pixels.
    """
    figure, path = picture.draw(), folder / f"{picture.name}.svg"
    set_title(figure, f"{picture.heading}, {title}")
    save_figure(figure, path.with_suffix(".png"))
    save_figure(figure, path)
    svg = base64.b64encode(path.read_bytes()).decode()
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    return f"data:image/svg+xml;base64,{svg}", width, height


def write_report(
    out: Path, targets: Sequence[float] = (), against: TrainConfig | None = None
) -> Path:
    """Writes the page for a folder's records, and its pictures as PNG and SVG.

    `targets` and `against` are as for `comparison_frame`. The page is self-contained;
    in the folder of a sweep it begins with the sweep. Returns its path.
    """
    runs = find_runs(out)
    if not runs:
        raise InputError(
            f"--out={out} holds no usable run; run benchmarks.compare with it first"
        )
    details = {
        run.params_sha256: read_json(DetailsRecord, folder / DETAILS)
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
        sections=sections,
        sweep=read_sweep(out),
        draw=partial(_draw, out / PICTURES),
    )
    write_file(out / PAGE, page)
    return out / PAGE
