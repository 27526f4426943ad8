"""Trains models over seeds and prints their comparison table.

python -m benchmarks.compare --models=mlp,lstm,cnn --seeds=1 --epochs=5 --out=results

Each run has a directory of its own below --out/runs. Finished ones are not trained
again, and what was stopped resumes after the last epoch; another --out measures again.
"""

from pathlib import Path

import pandas as pd
from absl import flags

from mnist_jax.cli.config_flags import config_from_flags, define_config_flags
from mnist_jax.cli.flags import (
    chosen_models,
    chosen_seeds,
    define_machine_flags,
    define_models_flag,
    define_quiet_flag,
    define_seeds_flag,
    load_data,
)
from mnist_jax.cli.main import run_program, start_jax, stop_between_chunks
from mnist_jax.config import TrainConfig
from mnist_jax.data.splits import split_dataset
from mnist_jax.records.files import make_folder, write_file
from mnist_jax.records.schema import write_json
from mnist_jax.reporting.predictions import run_details
from mnist_jax.reporting.progress import ProgressPrinter
from mnist_jax.reporting.report import PICTURES, RESULTS, write_report
from mnist_jax.reporting.tables import comparison_frame, format_markdown, group_by_table
from mnist_jax.training.run_dir import DETAILS, PARAMS, load_run
from mnist_jax.training.sweep import (
    HOW_TO_RESUME,
    Study,
    export_runs,
    read_runs,
    train_runs,
)

FLAGS = flags.FLAGS


def write_tables(out: Path) -> str:
    """Exports the runs of a folder as JSON lines, Markdown and CSV.

    Returns:
        The Markdown.
    """
    export_runs(out, RESULTS)
    records = read_runs(out, RESULTS)
    markdown = format_markdown(records)
    write_file(out / "compare.md", markdown + "\n")
    frames = [
        comparison_frame(group).assign(
            dataset=group[0].dataset, device=group[0].environment.device
        )
        for group in group_by_table(records)
    ]
    write_file(out / "compare.csv", pd.concat(frames).to_csv(index=False))
    return markdown


def train_config(config: TrainConfig, study: Study, printer: ProgressPrinter) -> None:
    """Trains the seeds of a config that have no run yet, and keeps their details."""
    plan = study.plan(config.model, config)
    train_runs(plan, study.dataset, printer)
    test = split_dataset(study.dataset, config).test
    for folder in plan.folders.values():
        if (folder / PARAMS).exists() and not (folder / DETAILS).exists():
            write_json(folder / DETAILS, run_details(load_run(folder), test))


def main() -> None:
    """Compares as the flags say."""
    configs = [config_from_flags(FLAGS, model=model) for model in chosen_models()]
    seeds = chosen_seeds(configs[0].seed, FLAGS.seeds)
    out = Path(FLAGS.out)
    make_folder(out)
    start_jax()
    study = Study(out, RESULTS, load_data(configs[0].dataset), seeds)
    printer = ProgressPrinter(FLAGS.quiet, stop_between_chunks(HOW_TO_RESUME))
    for config in configs:
        train_config(config, study, printer)
    print(f"\n{write_tables(out)}\n\nwritten: {out}/compare.jsonl, .csv, .md")
    if FLAGS.report:
        print(f"written: {write_report(out)} and its pictures in {out}/{PICTURES}")


def run() -> None:
    """Entry point of `mnist-jax-compare`."""
    define_config_flags(exclude=("model",))
    define_machine_flags()
    define_models_flag("compare")
    define_seeds_flag(1)
    define_quiet_flag()
    flags.DEFINE_string("out", "results", "directory for the runs and their tables")
    flags.DEFINE_boolean(
        "report", False, "also write report.html and its pictures into --out"
    )
    run_program(main)


if __name__ == "__main__":
    run()
