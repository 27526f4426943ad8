"""The record of measurements on an accelerator, and its tables."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from mnist_jax.records.environment import Environment
from mnist_jax.records.schema import SCHEMA_VERSION
from mnist_jax.reporting.tables import (
    format_commit,
    format_versions,
    markdown_table,
    mean_and_spread,
    median_and_range,
)

Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class AcceleratorRecord:
    """One part of the measurements on an accelerator; see `measure` for the rows."""

    part: str  # a key of TABLES
    environment: Environment
    dataset: str
    train_images: int
    rows: list[dict[str, Any]]
    schema_version: int = SCHEMA_VERSION


def _speed(values: Sequence[float]) -> str:
    return f"{statistics.median(values):,.0f}"


def _ratio(first: Sequence[float], second: Sequence[float]) -> str:
    return f"{statistics.median(first) / statistics.median(second):.2f}"


def training_row(row: Row) -> Row:
    """Formats a network's runs, of which each seed is one."""
    totals = [sum(seconds) for seconds in row["epoch_seconds"]]
    steady = [s for seconds in row["epoch_seconds"] for s in seconds[1:] or seconds]
    return {
        "model": row["model"],
        "epochs": len(row["epoch_seconds"][0]),
        "test accuracy": mean_and_spread(row["test_accuracy"]),
        "compile s": f"{row['compile_seconds']:.1f}",
        "first run's epochs, s": f"{totals[0]:.2f}",
        "a further run's epochs, s": median_and_range(totals[1:] or totals, 2),
        "steady s/epoch": median_and_range(steady, 3),
    }


def speed_row(row: Row) -> Row:
    """Formats the speed at one batch size and precision."""
    return {
        "model": row["model"],
        "batch": row["batch_size"],
        "train float32 images/s": _speed(row["float32"]["epoch"]),
        "train bfloat16 images/s": _speed(row["bfloat16"]["epoch"]),
        "bfloat16 / float32": _ratio(row["bfloat16"]["epoch"], row["float32"]["epoch"]),
        "evaluate images/s": _speed(row["float32"]["evaluate"]),
    }


def together_row(row: Row) -> Row:
    """Formats the speed of several seeds in one program."""
    return {
        "model": row["model"],
        "seeds": row["seeds"],
        "images/s of all": _speed(row["together"]),
        "times one seed alone": _ratio(row["together"], row["alone"]),
    }


def lstm_row(row: Row) -> Row:
    """Formats the speeds of an LSTM layer and of cuDNN's."""
    return {
        "batch": row["batch_size"],
        "ours images/s": _speed(row["ours"]),
        "cuDNN images/s": _speed(row["cudnn"]),
        "ours / cuDNN": _ratio(row["ours"], row["cudnn"]),
    }


def determinism_row(row: Row) -> Row:
    """Formats whether two processes trained the same parameters."""
    return {
        "model": row["model"],
        "XLA_FLAGS": f"`{row['flag']}`" if row["flag"] else "none",
        "two processes": "the same bits" if row["equal"] else "other bits",
        "s/epoch": median_and_range(row["seconds"], 3),
    }


TABLES = {
    "training": ("The default networks, one seed after the other", training_row),
    "speed": ("Training by batch size and precision", speed_row),
    "together": ("Several seeds in one program, batch 128", together_row),
    "lstm": ("One LSTM layer of 128 units and cuDNN's, float32", lstm_row),
    "determinism": ("Training twice, in two processes", determinism_row),
}


def format_accelerators(records: Sequence[AcceleratorRecord]) -> str:
    """Formats the latest record of each part on each device as Markdown."""
    latest: dict[str, dict[str, AcceleratorRecord]] = {}
    for record in records:
        latest.setdefault(record.environment.device, {})[record.part] = record
    blocks = []
    for device, parts in latest.items():
        blocks.append(f"**{device}**")
        for part, (title, format_row) in TABLES.items():
            if part in parts:
                frame = pd.DataFrame([format_row(row) for row in parts[part].rows])
                blocks += [f"{title}:", markdown_table(frame)]
        blocks.append("\n".join(f"- {note}" for note in _notes(list(parts.values()))))
    return "\n\n".join(blocks)


def _notes(records: Sequence[AcceleratorRecord]) -> list[str]:
    environments = [record.environment for record in records]
    commits = dict.fromkeys(map(format_commit, environments))
    dates = sorted(environment.date for environment in environments)
    data = {f"{r.dataset}, {r.train_images:,} training images" for r in records}
    return [
        f"data: {', '.join(sorted(data))}; speeds are on random images",
        f"versions: {format_versions(environments[0])}",
        f"commit: {', '.join(commits)}",
        f"date: {dates[0]} to {dates[-1]}",
    ]
