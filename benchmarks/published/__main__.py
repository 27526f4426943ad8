"""Trains the ten published systems and compares them with their published results.

python -m benchmarks.published --seeds=5 --out=results/published

Each run has its own directory below --out/runs. Finished runs are not trained again,
and interrupted ones resume after the last epoch.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from absl import flags

from mnist_jax.cli.config_flags import define_config_flags
from mnist_jax.cli.flags import (
    define_list_flag,
    define_path_flag,
    define_training_flags,
)
from mnist_jax.cli.main import run_program, start_jax, stop_between_chunks
from mnist_jax.data.datasets import load_dataset
from mnist_jax.records.files import write_file
from mnist_jax.records.schema import RunRecord
from mnist_jax.reporting.progress import follow
from mnist_jax.reporting.statistics import prediction_interval, spread, verdict
from mnist_jax.reporting.tables import (
    group_by_table,
    markdown_table,
    table_notes,
    title,
)
from mnist_jax.training.run_dir import export_runs, run_folders
from mnist_jax.training.runs import HOW_TO_RESUME, train_runs

from .claims import Runs, claims_frame
from .systems import CONTROLS, SYSTEMS, read_preset

FLAGS = flags.FLAGS
KNOWN = [*SYSTEMS, *CONTROLS]

RULE = (
    "Verdict: a published single run *agrees* if it lies within the 95 % prediction "
    "interval of our seeds (Student's t: mean ± t·s·√(1+1/n)); otherwise it is *above* "
    "or *below* our runs. Seconds per epoch: ours are medians over steady epochs; the "
    "sources ran on other, unknown machines, so the two are not comparable."
)


def _verdict(published: str, ours: Sequence[float]) -> str:
    """Compares a published run with the prediction interval of ours; see `RULE`."""
    if published == "-":
        return published
    if len(ours) < 2:
        return f"undecided at n = {len(ours)}"
    where = verdict(prediction_interval(ours), float(published), "below", "above")
    return where.replace("undecided", "agrees")


def by_system(records: Iterable[RunRecord]) -> Runs:
    """Groups the records of systems by system and seed."""
    runs: dict[str, dict[int, RunRecord]] = {}
    for record in records:
        runs.setdefault(record.system or "", {})[record.config.seed] = record
    return runs


def systems_frame(runs: Runs) -> pd.DataFrame:
    """Returns one row per published system that was run."""
    rows = []
    for name in [name for name in SYSTEMS if name in runs]:
        system, found = SYSTEMS[name], [*runs[name].values()]
        accuracies = [run.test_accuracy for run in found]
        best = [max(epoch.val_accuracy or 0 for epoch in run.epochs) for run in found]
        seconds = [time for run in found if (time := run.steady_epoch_seconds)]
        rows.append(
            {
                "system": name,
                "parameters": f"{found[0].parameters:,}",
                "parameters published": system.parameters,
                "accuracy published": system.accuracy,
                "ours": spread(accuracies),
                "verdict": _verdict(system.accuracy, accuracies),
                "best epoch published": system.best_accuracy,
                "best epoch ours": "-" if system.best_accuracy == "-" else spread(best),
                "loss published": system.loss,
                "loss ours": spread([run.test_loss for run in found]),
                "s/epoch published": system.epoch_seconds,
                "s/epoch ours": f"{np.median(seconds):.2f}" if seconds else "-",
            }
        )
    return pd.DataFrame(rows)


def format_published(records: Sequence[RunRecord]) -> str:
    """Formats the tables for each dataset and machine of the records."""
    texts = []
    for group in group_by_table(records):
        runs = by_system(group)
        texts += [
            f"**{title(group[0])}**",
            markdown_table(systems_frame(runs)),
            RULE,
            markdown_table(claims_frame(runs), table_notes(group)),
        ]
    return "\n\n".join(texts)


def main() -> None:
    """Trains the missing runs and prints the tables."""
    out = Path(FLAGS.out)
    given = {name: FLAGS[name].value for name in ("epochs", "train_size", "dataset")}
    changes = {name: value for name, value in given.items() if value is not None}
    presets = {name: read_preset(name, **changes) for name in KNOWN}
    out.mkdir(parents=True, exist_ok=True)
    start_jax()
    dataset = load_dataset(FLAGS.dataset, FLAGS.data_dir)
    chosen = FLAGS.systems or KNOWN
    needed = {*chosen, *(presets[name][1] for name in chosen)}
    folders: dict[str, dict[int, Path]] = {}  # by system and seed
    with stop_between_chunks(HOW_TO_RESUME) as check_stopped:
        for name, (config, start) in presets.items():
            if name not in needed:
                continue
            print(name, flush=True)
            seeds = range(FLAGS.seeds)
            folders[name] = run_folders(out, config, dataset, seeds, name)
            events = train_runs(
                config,
                dataset,
                folders[name],
                system=name,
                start_from=folders[start] if start else None,
            )
            follow(events, FLAGS.quiet, check_stopped)
    markdown = format_published(export_runs(out, "published.jsonl"))
    write_file(out / "published.md", markdown + "\n")
    print(f"\n{markdown}\n\nwritten: {out}/published.jsonl and published.md")


def run() -> None:
    """Entry point."""
    some = f"default: all; some of {', '.join(KNOWN)}"
    define_list_flag("systems", (), some, flags.EnumParser(KNOWN).parse)
    define_training_flags(5)
    define_path_flag("out", "results/published", "directory for tables and runs")
    flags.DEFINE_enum(
        "dataset", "mnist", ["mnist", "digits"], "dataset; digits is for quick trials"
    )
    define_config_flags(only=("epochs", "train_size"))
    run_program(main)


if __name__ == "__main__":
    run()
