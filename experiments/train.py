"""Trains one network and reports every epoch.

python -m experiments.train --model=cnn --epochs=5 --run_dir=runs/cnn0
"""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mnist_jax.config import config_from_flags, define_flags
from mnist_jax.errors import InputError
from mnist_jax.fit import fit, prepare
from mnist_jax.progress import announce, announce_compiling, epoch_rows, result
from mnist_jax.records import EpochRecord
from mnist_jax.runs import check_run_dir, fit_into, read_params
from mnist_jax.startup import (
    define_machine_flags,
    define_seeds_flag,
    existing_folder,
    load_data,
    run_program,
    start_jax,
)
from mnist_jax.tensorboard import check_tensorboard, epoch_scalars

FLAGS = flags.FLAGS


def main() -> None:
    """Trains as the flags say."""
    config = config_from_flags(FLAGS)
    if FLAGS.init_preset and not FLAGS.init_from:
        raise InputError(
            f"this preset starts from the parameters of {FLAGS.init_preset}; first "
            f"run `python -m experiments.train --flagfile=experiments/presets/"
            f"{FLAGS.init_preset}.cfg --run_dir=runs/{FLAGS.init_preset}`, then this "
            f"command again with --init_from=runs/{FLAGS.init_preset}"
        )
    seeds = range(config.seed, config.seed + FLAGS.seeds)
    folders = {}
    if FLAGS.run_dir:
        folder = Path(FLAGS.run_dir)
        folders = {seed: folder / f"seed{seed}" for seed in seeds}
        if FLAGS.seeds == 1:
            folders = {config.seed: folder}
    if FLAGS.tensorboard:
        check_tensorboard()
        if not folders:
            raise InputError(
                "--tensorboard writes into --run_dir, which is not given; give a "
                "directory or leave --tensorboard out"
            )
    for folder in folders.values():
        check_run_dir(folder, FLAGS.overwrite)
    start_jax()
    dataset = load_data(config.dataset)
    announce_compiling(config)
    experiment = prepare(config, dataset, FLAGS.seeds)
    announce(experiment)
    params = None
    if FLAGS.init_from:
        source = existing_folder(FLAGS.init_from, "init_from")
        params = [read_params(source, experiment.model)] * FLAGS.seeds
    on_epoch = epoch_rows(experiment)
    if FLAGS.tensorboard:
        images = len(experiment.dataset.train.labels)
        with epoch_scalars(list(folders.values()), images) as write:

            def tell_both(epochs: Sequence[EpochRecord]) -> None:
                write(epochs)
                on_epoch(epochs)

            records = fit_into(experiment, folders, tell_both, params)
    elif folders:
        records = fit_into(experiment, folders, on_epoch, params)
    else:
        records = [record for record, _ in fit(experiment, seeds, on_epoch, params)]
    for record in records:
        result(record)


def run() -> None:
    """Is the console script."""
    define_flags()
    define_machine_flags()
    flags.DEFINE_string(
        "run_dir",
        None,
        "directory for config, metrics, record and parameters; of several seeds each "
        "gets a directory seed0, seed1, ... in it",
    )
    define_seeds_flag(1)
    flags.DEFINE_string(
        "init_from", None, "directory of a finished run whose parameters to start from"
    )
    flags.DEFINE_string(
        "init_preset",
        None,
        "preset that must have trained --init_from (presets set it)",
    )
    flags.DEFINE_boolean(
        "tensorboard", False, "also write a TensorBoard event file into --run_dir"
    )
    flags.DEFINE_boolean("overwrite", False, "replace a run that --run_dir holds")
    run_program(main)


if __name__ == "__main__":
    run()
