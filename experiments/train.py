"""Trains one network and reports every epoch.

python -m experiments.train --model=cnn --epochs=5 --run_dir=runs/cnn0
"""

from pathlib import Path

from absl import flags

from mnist_jax.config import config_from_flags, define_flags
from mnist_jax.fit import fit, prepare
from mnist_jax.progress import announce, epoch_rows, result
from mnist_jax.runs import check_run_dir, fit_into
from mnist_jax.startup import define_machine_flags, load_data, run_program, start_jax

FLAGS = flags.FLAGS


def main() -> None:
    """Trains as the flags say."""
    config = config_from_flags(FLAGS)
    folder = Path(FLAGS.run_dir) if FLAGS.run_dir else None
    if folder is not None:
        check_run_dir(folder, FLAGS.overwrite)
    start_jax()
    experiment = prepare(config, load_data(config.dataset))
    announce(experiment)
    on_epoch = epoch_rows(experiment)
    if folder is None:
        record, _ = fit(experiment, config.seed, on_epoch)
    else:
        record = fit_into(experiment, config.seed, folder, on_epoch)
    result(record)


def run() -> None:
    """Is the console script."""
    define_flags()
    define_machine_flags()
    flags.DEFINE_string(
        "run_dir", None, "directory for config, metrics, record and parameters"
    )
    flags.DEFINE_boolean("overwrite", False, "replace a run that --run_dir holds")
    run_program(main)


if __name__ == "__main__":
    run()
