"""Makes the README's tables and the presets' figures from the recorded results.

python -m benchmarks.readme
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnist_jax.files import write_file
from mnist_jax.records import read_jsonl
from mnist_jax.startup import run_program
from mnist_jax.tables import format_markdown, mean_and_spread

from .published import by_system, format_published
from .redrawn import format_redrawn
from .systems import PRESETS, SYSTEMS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"

Records = Sequence[dict[str, Any]]

# The README's marked blocks: how the records of that name become text, and the command
# that made the records.
BLOCKS: dict[str, tuple[Callable[[Records], str], str]] = {
    "compare": (
        format_markdown,
        "python -m benchmarks.compare --dataset=mnist --seeds=3 "
        "--out=benchmarks/results",
    ),
    "published": (
        format_published,
        "python -m benchmarks.published --seeds=5 --out=benchmarks/results",
    ),
    "redrawn": (
        format_redrawn,
        "python -m benchmarks.redrawn --run_dir=runs/cnn0 --images=10000 "
        "--out=benchmarks/results",
    ),
}


def readme_with_tables(text: str) -> str:
    """Returns the README with every marked block made anew from its records."""
    for name, (form, command) in BLOCKS.items():
        results = RESULTS / f"{name}.jsonl"
        if not results.exists():
            continue
        block = f"{form(read_jsonl(results))}\n- command: `{command}`"
        before, rest = text.split(f"<!-- {name} -->\n")
        _, after = rest.split(f"<!-- /{name} -->")
        text = f"{before}<!-- {name} -->\n{block}\n<!-- /{name} -->{after}"
    return text


def preset_with_figures(name: str, text: str) -> str:
    """Returns a preset's text with our figures of it in the header."""
    records = read_jsonl(RESULTS / "published.jsonl")
    runs = list(by_system(records).get(name, {}).values())
    if not runs:
        return text
    accuracy = mean_and_spread([run["test_accuracy"] for run in runs])
    seconds = np.median([run["steady_epoch_seconds"] for run in runs])
    machine = runs[0]["environment"]
    ours = (
        f"# Ours: test accuracy {accuracy}, {seconds:.2f} s/epoch\n"
        f"# on {machine['device']} ({machine['cores']} cores)\n"
    )
    return re.sub(r"# Ours: .*\n(# on .*\n)?", lambda _: ours, text, count=1)


def main() -> None:
    """Rewrites the README and the presets."""
    readme = ROOT / "README.md"
    write_file(readme, readme_with_tables(readme.read_text()))
    for name in SYSTEMS:
        preset = PRESETS / f"{name}.cfg"
        write_file(preset, preset_with_figures(name, preset.read_text()))


if __name__ == "__main__":
    run_program(main)
