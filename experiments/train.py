"""Trains one network and prints a line per epoch.

python -m experiments.train --model=cnn --epochs=5 --run_dir=runs/cnn0
"""

from absl import flags

from mnist_jax.cli.config_flags import config_from_flags, define_config_flags
from mnist_jax.cli.flags import (
    define_cluster_flags,
    define_path_flag,
    define_preset_flag,
    define_training_flags,
)
from mnist_jax.cli.main import run_program, start_jax, stop_between_chunks
from mnist_jax.data.datasets import load_dataset
from mnist_jax.errors import InputError
from mnist_jax.reporting.progress import follow
from mnist_jax.reporting.trackers import TRACKERS, check_tracker, track
from mnist_jax.training import distributed
from mnist_jax.training.runs import train_seeds

FLAGS = flags.FLAGS
# Flags without effect if `--run_dir` is not set.
_NEED_RUN_DIR = "track", "profile", "checkpoint_every", "resume", "overwrite"


def _check_flags() -> None:
    """Raises InputError for flags that exclude or require each other."""
    for name in _NEED_RUN_DIR:
        if (value := FLAGS[name].value) and not FLAGS.run_dir:
            raise InputError(
                f"--{name}={value} needs --run_dir; set it or leave --{name} out"
            )
    if FLAGS.profile and FLAGS.seeds > 1:
        raise InputError(
            f"--profile works with one seed only; got --seeds={FLAGS.seeds}; leave one "
            "of them out"
        )
    if FLAGS.track:
        check_tracker(FLAGS.track)


def main() -> None:
    """Trains a config from the flags; without `--run_dir` nothing is kept."""
    config = config_from_flags(FLAGS)
    seeds = range(config.seed, config.seed + FLAGS.seeds)
    _check_flags()
    start_jax()
    dataset = load_dataset(config.dataset, FLAGS.data_dir)
    message = (
        "the same command with --resume resumes after the last checkpoint in "
        f"{FLAGS.run_dir}"
        if FLAGS.checkpoint_every
        else "there is no checkpoint to resume from; --run_dir with "
        "--checkpoint_every=1 writes them"
    )
    with (
        distributed.output_folder(FLAGS.run_dir) as root,
        stop_between_chunks(message) as check_stopped,
    ):
        events = train_seeds(
            config,
            dataset,
            root,
            seeds,
            FLAGS.init_from,
            resume=FLAGS.resume,
            overwrite=FLAGS.overwrite,
            checkpoint_every=FLAGS.checkpoint_every,
        )
        if FLAGS.track and distributed.is_writer():
            events = track(events, FLAGS.track, root)
        experiment = follow(events, FLAGS.quiet, check_stopped)
    if experiment is None:
        print(f"the run in {FLAGS.run_dir} is finished")
    elif FLAGS.profile:
        # Imported here because pandas takes 0.3 of the 1.1 s of all imports.
        from mnist_jax.profiling.profile import profile

        print(f"\n{profile(experiment, root / 'profile')}")


def run() -> None:
    """Entry point."""
    define_config_flags()
    define_cluster_flags()
    define_preset_flag()
    define_path_flag(
        "run_dir",
        None,
        "directory for the config, metrics, record and parameters; with several seeds, "
        "each has its own subdirectory seed0, seed1, ...",
    )
    define_training_flags()
    define_path_flag(
        "init_from",
        None,
        "run directory of a finished run; training starts from its parameters",
    )
    flags.DEFINE_enum(
        "track",
        None,
        TRACKERS,
        "experiment tracker that also gets the config, metrics and results",
    )
    flags.DEFINE_boolean(
        "profile",
        False,
        "print where the time goes and write a trace to --run_dir/profile",
    )
    flags.DEFINE_boolean(
        "overwrite",
        False,
        "replace the run in --run_dir; it is removed when training starts",
    )
    flags.DEFINE_integer(
        "checkpoint_every",
        0,
        "epochs between checkpoints in --run_dir; 0 writes none",
        lower_bound=0,
    )
    flags.DEFINE_boolean(
        "resume", False, "resume from the last checkpoint in --run_dir, bit for bit"
    )
    run_program(main)


if __name__ == "__main__":
    run()
