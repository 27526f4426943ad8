"""Makes the documents' tables and the presets' figures from the recorded results.

python -m benchmarks.readme
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnist_jax.cli.main import run_program
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import RunRecord, read_jsonl
from mnist_jax.reporting.tables import format_markdown, mean_and_spread

from .peers.frameworks import PeerRecord
from .peers.tables import format_ratios, format_tables
from .published.systems import PRESETS, SYSTEMS
from .published.table import by_system, format_published
from .redrawn import RedrawnRecord, format_redrawn

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "performance.md")


class Block(NamedTuple):
    """A marked block of the documents."""

    results: str  # stem of the file with the records
    record: type  # that its lines are decoded to
    format: Callable[[list[Any]], str]
    command: str  # that made the records


_PEERS = "make peers PEERS_OUT=benchmarks/results"
BLOCKS = {
    "compare": Block(
        "compare",
        RunRecord,
        format_markdown,
        "python -m benchmarks.compare --dataset=mnist --seeds=3 "
        "--out=benchmarks/results",
    ),
    "peers": Block("peers", PeerRecord, format_ratios, _PEERS),
    "peers and times": Block("peers", PeerRecord, format_tables, _PEERS),
    "published": Block(
        "published",
        RunRecord,
        format_published,
        "python -m benchmarks.published --seeds=5 --out=benchmarks/results",
    ),
    "redrawn": Block(
        "redrawn",
        RedrawnRecord,
        format_redrawn,
        "python -m benchmarks.redrawn --run_dir=runs/cnn0 --images=10000 "
        "--out=benchmarks/results",
    ),
}


def with_tables(text: str) -> str:
    """Returns a document with every marked block rebuilt from its records."""
    for name, made_of in BLOCKS.items():
        results = RESULTS / f"{made_of.results}.jsonl"
        if f"<!-- {name} -->\n" not in text or not results.exists():
            continue
        table = made_of.format(read_jsonl(made_of.record, results))
        block = f"{table}\n- command: `{made_of.command}`"
        before, rest = text.split(f"<!-- {name} -->\n")
        _, after = rest.split(f"<!-- /{name} -->")
        text = f"{before}<!-- {name} -->\n{block}\n<!-- /{name} -->{after}"
    return text


def preset_with_figures(name: str, text: str) -> str:
    """Returns a preset's text with our figures of it in the header."""
    records = read_jsonl(RunRecord, RESULTS / "published.jsonl")
    runs = list(by_system(records).get(name, {}).values())
    if not runs:
        return text
    accuracy = mean_and_spread([run.test_accuracy for run in runs])
    seconds = np.median([run.steady_epoch_seconds for run in runs])
    machine = runs[0].environment
    ours = (
        f"# Ours: test accuracy {accuracy}, {seconds:.2f} s/epoch\n"
        f"# on {machine.device} ({machine.cores} cores)\n"
    )
    return re.sub(r"# Ours: .*\n(# on .*\n)?", lambda _: ours, text, count=1)


def main() -> None:
    """Rewrites the documents and the presets."""
    for path in DOCUMENTS:
        write_file(path, with_tables(path.read_text()))
    for name in SYSTEMS:
        preset = PRESETS / f"{name}.cfg"
        write_file(preset, preset_with_figures(name, preset.read_text()))


if __name__ == "__main__":
    run_program(main)
