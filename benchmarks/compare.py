"""Trains models over seeds and prints their comparison table.

python -m benchmarks.compare --models=mlp,lstm,cnn --seeds=1 --epochs=5 --out=results

Each run has a run directory below --out/runs. Finished runs are not trained again and
unfinished ones resume after their last epoch; to measure again, use another --out.
"""

from absl import flags

from mnist_jax.api import train_configs, write_tables
from mnist_jax.cli.config_flags import config_from_flags, define_config_flags
from mnist_jax.cli.flags import (
    define_cluster_flags,
    define_models_flag,
    define_path_flag,
    define_precisions_flag,
    define_targets_flag,
    define_training_flags,
)
from mnist_jax.cli.main import run_program, start_jax, stop_between_chunks
from mnist_jax.data.datasets import load_dataset
from mnist_jax.errors import InputError
from mnist_jax.reporting.progress import follow
from mnist_jax.reporting.report import PICTURES, write_report
from mnist_jax.reporting.tables import check_targets
from mnist_jax.training import distributed
from mnist_jax.training.runs import HOW_TO_RESUME

FLAGS = flags.FLAGS


def main() -> None:
    """Trains the networks given by the flags and prints their table."""
    configs = [
        config_from_flags(FLAGS, model=model, precision=precision)
        for model in FLAGS.models
        for precision in FLAGS.precisions
    ]
    check_targets(FLAGS.targets, configs)
    against = {config.model: config for config in configs[::-1]}.get(FLAGS.against)
    if FLAGS.against is not None and against is None:
        raise InputError(
            f"--against must be one of --models={','.join(FLAGS.models)}; got "
            f"{FLAGS.against}"
        )
    seeds = range(configs[0].seed, configs[0].seed + FLAGS.seeds)
    start_jax()
    with distributed.output_folder(FLAGS.out) as out:
        dataset = load_dataset(configs[0].dataset, FLAGS.data_dir)
        with stop_between_chunks(HOW_TO_RESUME) as check_stopped:
            events = train_configs(out, configs, dataset, seeds)
            follow(events, FLAGS.quiet, check_stopped)
        tables = write_tables(out, FLAGS.targets, against)
        print(f"\n{tables}\n\nwritten: {out}/compare.jsonl, .csv, .md: all columns")
        if FLAGS.report:
            page = write_report(out, FLAGS.targets, against)
            print(f"written: {page} and its pictures in {out}/{PICTURES}")


def run() -> None:
    """Entry point."""
    define_config_flags(exclude=("model", "precision"))
    define_cluster_flags()
    define_models_flag("compare")
    define_precisions_flag()
    define_training_flags()
    define_targets_flag()
    flags.DEFINE_string(
        "against",
        None,
        "one of --models: adds the difference of each mean test accuracy from its to "
        "the table, with a 95 % interval, paired by seed",
    )
    define_path_flag("out", "results", "folder for the runs and their tables")
    flags.DEFINE_boolean(
        "report", False, "also write report.html and its pictures to --out"
    )
    run_program(main)


if __name__ == "__main__":
    run()
