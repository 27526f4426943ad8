"""Rebuilds the tables in the documents from the records.

python -m benchmarks.readme
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mnist_jax.cli.main import run_program
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import RunRecord, read_jsonl
from mnist_jax.reporting.statistics import ratio_interval
from mnist_jax.reporting.tables import (
    comparison_frame,
    format_markdown,
    markdown_table,
    provenance,
)

from .peers.frameworks import FRAMEWORKS, PeerRecord
from .peers.tables import (
    LOWER_QUARTILE,
    Rounds,
    format_ratios,
    group,
    latest_machine,
    lower_quartile,
    paired,
    rank_peers,
)
from .published.__main__ import format_published
from .speedrun import SpeedRecord, format_fastest, format_speed
from .throughput import ThroughputRecord, throughput_frame

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


class Block(NamedTuple):
    """A table between `<!-- name -->` and `<!-- /name -->` in one of the documents."""

    results: str  # stem of the JSON-lines file in `RESULTS`
    record: type  # type of its records
    format: Callable[[list[Any]], str]  # records -> Markdown


def _speedup(race: Mapping[str, Rounds], peer: str) -> str:
    return f"{ratio_interval(paired(race, peer), LOWER_QUARTILE):.1f}"


def _speedup_over_best(race: Mapping[str, Rounds]) -> str:
    peer = rank_peers(race)[0]
    return f"{_speedup(race, peer)} ({FRAMEWORKS[peer].label})"


def format_summary(records: Sequence[PeerRecord]) -> str:
    """Formats accuracy, of `compare.jsonl`, and speed of the three networks."""
    compared = read_jsonl(RunRecord, RESULTS / "compare.jsonl")
    frame = comparison_frame(compared).sort_values("steady_epoch_seconds")
    raced = [r for r in latest_machine(records) if r.race.batch_size == 128]
    races = {race.model: frameworks for race, frameworks in group(raced).items()}
    rows = [
        {
            "network": f"{row.model.upper()}, {row.parameters:,} parameters",
            "test accuracy": f"{row.test_accuracy:.4f} ± {row.test_accuracy_std:.4f}",
            "s/epoch": f"{row.steady_epoch_seconds:.2f}",
            "over PyTorch": _speedup(races[row.model], "torch"),
            "over fastest peer": _speedup_over_best(races[row.model]),
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
    latest = {
        (r.config["model"], r.config["batch_size"], r.config["precision"], r.seeds): r
        for r in found
        if r.environment.compared() == found[-1].environment.compared()
    }
    chosen = list(latest.values())
    return markdown_table(throughput_frame(chosen), provenance(chosen))


def format_networks(records: Sequence[PeerRecord]) -> str:
    """Formats the speed of the networks of `examples/`, one row each."""
    latest = latest_machine(records)
    rows: dict[str, dict[str, str]] = {}
    for race, frameworks in group(latest).items():
        seconds, size = lower_quartile(frameworks["ours"]), race.batch_size
        steps = -(-race.train_images // size)
        row = rows.setdefault(race.model, {"network": f"`{race.model}`"})
        row[f"ms/step, batch {size}"] = f"{1e3 * seconds / steps:.1f}"
        row[f"over plain Flax, {size}"] = _speedup(frameworks, "flax")
        row[f"over fastest peer, {size}"] = _speedup_over_best(frameworks)
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


BLOCKS = {
    "summary": Block("peers", PeerRecord, format_summary),
    "accelerators": Block("throughput", ThroughputRecord, format_accelerators),
    "compare": Block("compare", RunRecord, format_markdown),
    "networks": Block("networks", PeerRecord, format_networks),
    "peers": Block("peers", PeerRecord, format_ratios),
    "published": Block("published", RunRecord, format_published),
    "fastest": Block("speedrun", SpeedRecord, format_fastest),
    "records": Block("speedrun", SpeedRecord, format_speed),
}


def with_tables(text: str) -> str:
    """Returns a document with all its blocks rebuilt from the records."""

    def rebuild(found: re.Match[str]) -> str:
        name, made_of = found[1], BLOCKS[found[1]]
        path = RESULTS / f"{made_of.results}.jsonl"
        records: list[Any] = read_jsonl(made_of.record, path)
        return f"<!-- {name} -->\n{made_of.format(records)}\n<!-- /{name} -->"

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
