"""Trains models over seeds and prints their comparison table.

python -m benchmarks.compare --models=mlp,lstm,cnn --seeds=1 --epochs=5 --out=results

What --out holds already is not run again, and what was stopped goes on after the last
epoch; another --out measures anew.
"""

import functools
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from absl import flags

from mnist_jax.cli.main import (
    chosen_models,
    chosen_seeds,
    define_machine_flags,
    define_models_flag,
    define_quiet_flag,
    define_seeds_flag,
    load_data,
    run_program,
    start_jax,
    stop_between_parts,
)
from mnist_jax.config import TrainConfig, config_from_flags, define_flags
from mnist_jax.data.datasets import Dataset
from mnist_jax.records.files import make_folder, write_file
from mnist_jax.records.schema import append_jsonl, read_jsonl, to_dict, with_identity
from mnist_jax.reporting.predictions import make_predict, run_details
from mnist_jax.reporting.progress import (
    announce_compiling,
    report_training,
    result,
    stop_after,
)
from mnist_jax.reporting.report import DETAILS, PICTURES, RESULTS, write_report
from mnist_jax.reporting.tables import (
    NEEDED,
    comparison_frame,
    format_markdown,
    group_by_place,
)
from mnist_jax.training.checkpoints import save_snapshot
from mnist_jax.training.experiment import make_scale, prepare
from mnist_jax.training.fit import fit
from mnist_jax.training.recorded import announce_recorded, recorded_seeds
from mnist_jax.training.sweep import HOW_TO_GO_ON, take_up, unfinished_folder

FLAGS = flags.FLAGS


def write_tables(out: Path) -> str:
    """Writes `compare.md` and `.csv` from `compare.jsonl`; returns the Markdown."""
    records = read_jsonl(out / RESULTS, NEEDED)
    markdown = format_markdown(records)
    write_file(out / "compare.md", markdown + "\n")
    frames = [
        comparison_frame(group).assign(
            dataset=group[0]["dataset"], device=group[0]["environment"]["device"]
        )
        for group in group_by_place(records)
    ]
    write_file(out / "compare.csv", pd.concat(frames).to_csv(index=False))
    return markdown


def _train(
    config: TrainConfig, dataset: Dataset, out: Path, check_stopped: Callable[[], None]
) -> None:
    """Trains the seeds of a config that are not on record yet."""
    name, wanted = config.model, chosen_seeds(config.seed, FLAGS.seeds)
    with unfinished_folder(out, name, config, dataset, wanted, check_stopped) as folder:
        records = read_jsonl(out / RESULTS, NEEDED)
        recorded = recorded_seeds(records, config, dataset)
        for seed in sorted(recorded.intersection(wanted)):
            announce_recorded(name, seed)
        missing = set(wanted) - recorded
        if not missing:
            return
        folders, snapshot = take_up(folder, name, config, missing)
        announce_compiling(config, FLAGS.quiet)
        experiment = prepare(config, dataset, len(folders))
        reports = report_training(experiment, FLAGS.quiet)
        on_epoch, on_part = stop_after(reports, check_stopped)
        scale = make_scale(config, experiment.dataset)
        predict = make_predict(experiment.model, scale)
        runs = fit(
            experiment,
            list(folders),
            on_epoch,
            on_part=on_part,
            on_snapshot=functools.partial(save_snapshot, folders=folders),
            resume=snapshot,
        )
        for record, params in runs:
            if record.config["seed"] in missing:
                # Before the record: a run that has one is not run again.
                details = run_details(config, params, predict, experiment.dataset.test)
                append_jsonl(out / DETAILS, with_identity(details, record))
                append_jsonl(out / RESULTS, to_dict(record))
                result(record)


def main() -> None:
    """Compares as the flags say."""
    configs = [config_from_flags(FLAGS, model=model) for model in chosen_models()]
    out = Path(FLAGS.out)
    make_folder(out)
    start_jax()
    dataset = load_data(configs[0].dataset)
    check_stopped = stop_between_parts(HOW_TO_GO_ON)
    for config in configs:
        _train(config, dataset, out, check_stopped)
        check_stopped()
    print(f"\n{write_tables(out)}\n\nwritten: {out}/compare.jsonl, .csv, .md")
    if FLAGS.report:
        print(f"written: {write_report(out)} and its pictures in {out}/{PICTURES}")


def run() -> None:
    """Is the console script."""
    define_flags(exclude=("model",))
    define_machine_flags()
    define_models_flag("compare")
    define_seeds_flag(1)
    define_quiet_flag()
    flags.DEFINE_string("out", "results", "directory for compare.jsonl, .csv and .md")
    flags.DEFINE_boolean(
        "report", False, "also write report.html and its pictures into --out"
    )
    run_program(main)


if __name__ == "__main__":
    run()
