"""Trains the ten published systems and sets each beside its published number.

python -m benchmarks.published --seeds=5 --out=results/published

What --out holds already is not run again, and what was stopped goes on after the last
epoch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import flags

from mnist_jax.cli.main import (
    define_machine_flags,
    define_quiet_flag,
    define_seeds_flag,
    load_data,
    run_program,
    start_jax,
    stop_between_parts,
)
from mnist_jax.data.datasets import Dataset
from mnist_jax.errors import InputError
from mnist_jax.records.files import make_folder, write_file
from mnist_jax.records.schema import append_jsonl, read_jsonl, to_dict
from mnist_jax.reporting.progress import report_training, result, stop_after
from mnist_jax.reporting.tables import NEEDED as TABLE_NEEDED
from mnist_jax.reporting.tables import group_by_place, markdown_table, provenance, title
from mnist_jax.training.experiment import prepare
from mnist_jax.training.recorded import announce_recorded, recorded_seeds
from mnist_jax.training.run_dir import PARAMS, fit_into, read_params
from mnist_jax.training.sweep import HOW_TO_GO_ON, take_up, unfinished_folder

from ..statistics import prediction_interval
from .claims import Runs, claims_frame
from .systems import CONTROLS, SYSTEMS, System, read_preset

FLAGS = flags.FLAGS
NEEDED = (*TABLE_NEEDED, "system", "epochs")  # what a record must have to be shown

RULE = (
    "Verdict: a published single run *agrees* if it lies within the 95 % prediction "
    "interval of our seeds (Student's t: mean ± t·s·√(1+1/n)), otherwise it is *above* "
    "or *below* our runs. Seconds per epoch: ours are the median of the steady epochs; "
    "the sources' machines are unknown and other ones, so the two do not compare."
)


def _spread(values: Sequence[float]) -> str:
    """Writes mean ± standard deviation [least, greatest] (n)."""
    std = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return (
        f"{np.mean(values):.4f}{std} [{min(values):.4f}, {max(values):.4f}] "
        f"(n={len(values)})"
    )


def _verdict(published: float | None, ours: Sequence[float]) -> str:
    """Judges a published single run by the prediction interval of ours; see `RULE`."""
    if published is None:
        return "-"
    if len(ours) < 2:
        return f"undecided at n = {len(ours)}"
    interval = prediction_interval(ours)
    if published > interval.high:
        return "above"
    return "below" if published < interval.low else "agrees"


def _number(value: float | None) -> str:
    """Writes a published figure or its absence."""
    return "-" if value is None else f"{value:.4f}"


def _row(name: str, system: System, runs: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns a system's line of the table."""
    accuracies = [run["test_accuracy"] for run in runs]
    best = [max(epoch["val_accuracy"] or 0 for epoch in run["epochs"]) for run in runs]
    seconds = [time for run in runs if (time := run["steady_epoch_seconds"])]
    published = "-" if system.parameters is None else f"{system.parameters:,}"
    return {
        "system": name,
        "parameters": f"{runs[0]['parameters']:,}",
        "published ": published,
        "accuracy published": _number(system.accuracy),
        "ours": _spread(accuracies),
        "verdict": _verdict(system.accuracy, accuracies),
        "best epoch published": _number(system.best_accuracy),
        "best epoch ours": "-" if system.best_accuracy is None else _spread(best),
        "loss published": _number(system.loss),
        "loss ours": _spread([run["test_loss"] for run in runs]),
        "s/epoch published": system.epoch_seconds,
        "s/epoch ours": f"{np.median(seconds):.2f}" if seconds else "-",
    }


def by_system(records: Sequence[dict[str, Any]]) -> dict[str, dict[int, dict]]:
    """Sorts records by system and seed."""
    runs: dict[str, dict[int, dict]] = {}
    for record in records:
        runs.setdefault(record["system"], {})[record["config"]["seed"]] = record
    return runs


def systems_frame(runs: Runs) -> pd.DataFrame:
    """Returns a line for each published system that was run."""
    return pd.DataFrame(
        [
            _row(name, system, list(runs[name].values()))  # type: ignore[arg-type]
            for name, system in SYSTEMS.items()
            if name in runs
        ]
    )


def format_published(records: Sequence[dict[str, Any]]) -> str:
    """Writes both tables for each data set and machine that records come from."""
    parts = []
    for group in group_by_place(records):
        runs = by_system(group)  # type: ignore[arg-type]
        parts.append(
            f"**{title(group[0])}**\n\n{markdown_table(systems_frame(runs))}\n\n{RULE}\n\n"
            f"{markdown_table(claims_frame(runs))}\n\n{provenance(group)}"
        )
    return "\n\n".join(parts)


def write_tables(out: Path) -> str:
    """Writes Markdown and CSV from `published.jsonl`; returns the Markdown."""
    records = read_jsonl(out / "published.jsonl", NEEDED)
    markdown = format_published(records)
    write_file(out / "published.md", markdown + "\n")
    groups = [by_system(group) for group in group_by_place(records)]  # type: ignore
    for name, frame_of in (("published", systems_frame), ("claims", claims_frame)):
        frame = pd.concat([frame_of(runs) for runs in groups])
        write_file(out / f"{name}.csv", frame.to_csv(index=False))
    return markdown


def _wanted(names: Sequence[str]) -> list[str]:
    """Returns the systems to train, one that starts from another after it."""
    known = [*SYSTEMS, *CONTROLS]
    for name in names:
        if name not in known:
            raise InputError(
                f"--systems must be some of {', '.join(known)}; got {name}"
            )
    wanted = set(names or known)
    wanted |= {start for name in wanted if (start := read_preset(name)[1])}
    return [name for name in known if name in wanted]


def _train(
    name: str, out: Path, dataset: Dataset, check_stopped: Callable[[], None]
) -> None:
    """Trains the seeds of a system that are not on record yet."""
    given = {flag: FLAGS[flag].value for flag in ("epochs", "train_size", "dataset")}
    overrides = [f"--{flag}={value}" for flag, value in given.items() if value]
    config, start = read_preset(name, *overrides)
    wanted = range(FLAGS.seeds)
    with unfinished_folder(
        out, name, config, dataset, wanted, check_stopped, name
    ) as folder:
        records = read_jsonl(out / "published.jsonl", NEEDED)
        recorded = recorded_seeds(records, config, dataset, name)
        missing = set()
        for seed in wanted:
            # Another system may start from its parameters, which must be there too.
            if seed in recorded and (_run_dir(out, name, seed) / PARAMS).exists():
                announce_recorded(name, seed)
            else:
                missing.add(seed)
        if not missing:
            return
        print(name, flush=True)
        checkpoint_folders, snapshot = take_up(folder, name, config, missing)
        experiment = prepare(config, dataset, len(checkpoint_folders))
        reports = report_training(experiment, FLAGS.quiet)
        on_epoch, on_part = stop_after(reports, check_stopped)
        params = None
        if start:
            starts = [_run_dir(out, start, seed) for seed in checkpoint_folders]
            params = [read_params(folder, experiment.model) for folder in starts]
        for record in fit_into(
            experiment,
            {seed: _run_dir(out, name, seed) for seed in checkpoint_folders},
            on_epoch,
            params,
            on_part=on_part,
            checkpoint_every=1,
            checkpoint_folders=checkpoint_folders,
            resume=snapshot,
        ):
            if record.config["seed"] in missing:
                line = {"system": name, **to_dict(record)}
                append_jsonl(out / "published.jsonl", line)
                result(record)


def _run_dir(out: Path, name: str, seed: int) -> Path:
    return out / "runs" / f"{name}-{seed}"


def main() -> None:
    """Trains what is not on record yet and prints the tables."""
    names, out = _wanted(FLAGS.systems), Path(FLAGS.out)
    make_folder(out / "runs")
    start_jax()
    dataset = load_data(FLAGS.dataset)
    check_stopped = stop_between_parts(HOW_TO_GO_ON)
    for name in names:
        _train(name, out, dataset, check_stopped)
        check_stopped()
    print(f"\n{write_tables(out)}\n\nwritten: {out}/published.jsonl, .md and .csv")


def run() -> None:
    """Is the program."""
    define_machine_flags()
    flags.DEFINE_list(
        "systems", [], "systems and controls to train, comma-separated; default all"
    )
    define_seeds_flag(5)
    define_quiet_flag()
    flags.DEFINE_string("out", "results/published", "directory for tables and runs")
    flags.DEFINE_enum(
        "dataset", "mnist", ["mnist", "digits"], "digits is for trying the program out"
    )
    flags.DEFINE_integer("epochs", None, "instead of the published", lower_bound=1)
    flags.DEFINE_integer("train_size", None, "use the first N only", lower_bound=1)
    run_program(main)
