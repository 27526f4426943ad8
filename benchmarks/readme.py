"""Rebuilds the tables in the documents from the records.

python -m benchmarks.readme
"""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mnist_jax.cli.main import run_program
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import RunRecord, read_jsonl
from mnist_jax.reporting.tables import (
    comparison_frame,
    format_markdown,
    latest_table,
    markdown_table,
    provenance,
)

from .peers.frameworks import PeerRecord
from .peers.tables import (
    format_ratios,
    format_speedup,
    group,
    lower_quartile,
    speedup_over_best,
)
from .published.__main__ import format_published
from .speedrun import SpeedRecord, format_fastest, format_speed
from .throughput import ThroughputRecord, throughput_frame

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def format_summary(records: Sequence[PeerRecord]) -> str:
    """Formats accuracy, of `compare.jsonl`, and speed of the three networks."""
    compared = read_jsonl(RunRecord, RESULTS / "compare.jsonl")
    frame = comparison_frame(compared).sort_values("steady_epoch_seconds")
    latest = latest_table(records)
    raced = [record for record in latest if record.race.batch_size == 128]
    races = {race.model: frameworks for race, frameworks in group(raced).items()}
    rows = [
        {
            "network": f"{row.model.upper()}, {row.parameters:,} parameters",
            "test accuracy": f"{row.test_accuracy:.4f} ± {row.test_accuracy_std:.4f}",
            "s/epoch": f"{row.steady_epoch_seconds:.2f}",
            "over PyTorch": format_speedup(races[row.model], "torch"),
            "over fastest peer": speedup_over_best(races[row.model]),
        }
        for row in frame.itertuples()
    ]
    run, machine = compared[0], compared[0].environment
    lstm = races["lstm"]["ours"][1].result.parameters
    return (
        f"{markdown_table(pd.DataFrame(rows))}\n\n"
        f"{run.dataset.upper()}, float32, on {machine.cores} cores of an "
        f"{machine.device}: {run.config.epochs} epochs, mean ± standard deviation of "
        f"{frame['seeds'].iloc[0]} seeds.\nSpeedup: on {raced[0].environment.device}, "
        "batches of 128, ratio of the lower quartiles of epochs, with its\n95 % "
        "interval; PyTorch as installed, in eager mode; the timed LSTM has two layers "
        f"({lstm:,} parameters)."
    )


def format_accelerators(records: Sequence[ThroughputRecord]) -> str:
    """Formats the latest images per second on the latest GPU or TPU."""
    found = [record for record in records if record.environment.platform != "cpu"]
    latest = {(r.config, r.seeds): r for r in latest_table(found)}
    chosen = list(latest.values())
    return markdown_table(throughput_frame(chosen), provenance(chosen))


def format_networks(records: Sequence[PeerRecord]) -> str:
    """Formats the speed of the networks of `examples/`, one row each."""
    latest = latest_table(records)
    rows: dict[str, dict[str, str]] = {}
    for race, frameworks in group(latest).items():
        seconds, size = lower_quartile(frameworks["ours"]), race.batch_size
        steps = math.ceil(race.train_images / size)
        row = rows.setdefault(race.model, {"network": f"`{race.model}`"})
        row[f"ms/step, batch {size}"] = f"{1e3 * seconds / steps:.1f}"
        row[f"over plain Flax, {size}"] = format_speedup(frameworks, "flax")
        row[f"over fastest peer, {size}"] = speedup_over_best(frameworks)
    notes = [
        f"ratios of the lower quartiles of epochs of {race.train_images:,} images, "
        "with their 95 % intervals; rounds of processes taking turns: "
        f"{max(record.round for record in latest)}",
        "plain Flax: a Python loop over jitted steps; peers: PyTorch as installed, "
        "compiled, and channels_last with memory kept by glibc",
        f"packages: {race.packages}",
        *provenance(latest),
    ]
    return markdown_table(pd.DataFrame(rows.values()).fillna("-"), notes)


# The tables between `<!-- name -->` and `<!-- /name -->` in one of the documents: stem
# of the JSON-lines file in `RESULTS`, type of its records, and records -> Markdown.
BLOCKS: dict[str, tuple[str, type, Callable[[list[Any]], str]]] = {
    "summary": ("peers", PeerRecord, format_summary),
    "accelerators": ("throughput", ThroughputRecord, format_accelerators),
    "compare": ("compare", RunRecord, format_markdown),
    "networks": ("networks", PeerRecord, format_networks),
    "peers": ("peers", PeerRecord, format_ratios),
    "published": ("published", RunRecord, format_published),
    "fastest": ("speedrun", SpeedRecord, format_fastest),
    "records": ("speedrun", SpeedRecord, format_speed),
}


def with_tables(text: str) -> str:
    """Returns a document with all its blocks rebuilt from the records."""

    def rebuild(found: re.Match[str]) -> str:
        name = found[1]
        results, record_type, form = BLOCKS[name]
        table = form(read_jsonl(record_type, RESULTS / f"{results}.jsonl"))
        return f"<!-- {name} -->\n{table}\n<!-- /{name} -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", rebuild, text, flags=re.DOTALL)


def main() -> None:
    """Rewrites the documents."""
    for path in DOCUMENTS:
        write_file(path, with_tables(path.read_text()))


def run() -> None:
    """Entry point."""
    run_program(main)


if __name__ == "__main__":
    run()
