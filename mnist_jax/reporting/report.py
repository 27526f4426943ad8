"""Writes recorded runs as a self-contained HTML page, and its pictures as files."""

import base64
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jinja2

from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import DetailsRecord, RunRecord, read_json
from mnist_jax.reporting.pictures import (
    Picture,
    comparison_pictures,
    run_pictures,
    save_picture,
)
from mnist_jax.reporting.plots import MAX_NAMED
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


def _section(
    records: Sequence[RunRecord],
    details: Mapping[str, DetailsRecord],
    targets: Sequence[float],
    against: TrainConfig | None,
) -> dict[str, Any]:
    """Returns the page's content for the records of one dataset and machine.

    `details` are those of runs by the sha256 of their parameters. Pictures are drawn
    when the page iterates over them.
    """
    compared = comparison_frame(records, targets, against)
    table = format_comparison(compared)
    rows = dict(zip(row_names(compared), group_by_row(records), strict=True))
    networks = []
    for (name, row), accuracy in zip(rows.items(), table["test accuracy"], strict=True):
        found = {
            run.config.seed: details[run.params_sha256]
            for run in row
            if run.params_sha256 in details
        }
        network = {"name": name, "run": row[0], "accuracy": accuracy, "details": found}
        networks.append(network | {"pictures": run_pictures(name, row, found)})
    return {
        "title": title(records[0]),
        "note": records[0].dataset_note,
        "table": table,
        "comparisons": comparison_pictures(rows, targets),
        "networks": networks[:DRAWN],
        "notes": column_notes(compared) + table_notes(records),
    }


def _draw(
    folder: Path, picture: Picture, prefix: str, title: str
) -> tuple[str, int, int]:
    """Writes a picture; its files have the prefix, and its heading ends in the title.

    Returns a data URI with the SVG, its width and height in CSS pixels.
    """
    name, heading = f"{prefix}{picture.name}", f"{picture.heading}, {title}"
    _, path = save_picture(picture._replace(name=name, heading=heading), folder)
    svg = base64.b64encode(path.read_bytes()).decode()
    width, height = (round(96 * inches) for inches in picture.figure.get_size_inches())
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
    tables = group_by_table(runs.values())
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mnist_jax.reporting", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template(PAGE).render(
        sections=[_section(table, details, targets, against) for table in tables],
        sweep=read_sweep(out),
        draw=partial(_draw, out / PICTURES),
        max_named=MAX_NAMED,
    )
    write_file(out / PAGE, page)
    return out / PAGE
