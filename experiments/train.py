"""Trains one network and reports every epoch.

python -m experiments.train --model=cnn --epochs=5 --run_dir=runs/cnn0
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from mnist_jax.cli.main import (
    chosen_seeds,
    define_machine_flags,
    define_profile_flag,
    define_quiet_flag,
    define_seeds_flag,
    existing_folder,
    load_data,
    run_program,
    start_jax,
    stop_between_parts,
)
from mnist_jax.config import TrainConfig, config_from_flags, define_flags
from mnist_jax.errors import InputError
from mnist_jax.records.schema import EpochRecord, RunRecord
from mnist_jax.reporting.event_files import check_tensorboard, epoch_scalars
from mnist_jax.reporting.progress import (
    announce_compiling,
    report_training,
    result,
    stop_after,
)
from mnist_jax.training.experiment import Experiment, prepare
from mnist_jax.training.fit import Snapshot, fit
from mnist_jax.training.run_dir import (
    check_run_dir,
    fit_into,
    read_params,
    resume_snapshot,
)

FLAGS = flags.FLAGS
_OF_RUN_DIR = "tensorboard", "profile", "checkpoint_every", "resume", "overwrite"


def _run_dirs(config: TrainConfig, seeds: range) -> dict[int, Path]:
    """Returns the run directory of each seed, none without `--run_dir`."""
    if FLAGS.init_preset and not FLAGS.init_from:
        raise InputError(
            f"this preset starts from the parameters of {FLAGS.init_preset}; first "
            f"run `python -m experiments.train --flagfile=experiments/presets/"
            f"{FLAGS.init_preset}.cfg --run_dir=runs/{FLAGS.init_preset}`, then this "
            f"command again with --init_from=runs/{FLAGS.init_preset}"
        )
    if FLAGS.tensorboard:
        check_tensorboard()
    if FLAGS["keep"].present and not FLAGS.checkpoint_every:
        raise InputError(
            f"--keep={FLAGS.keep} needs checkpoints, and --checkpoint_every is 0; give "
            "both or none of them"
        )
    if not FLAGS.run_dir:
        for name in _OF_RUN_DIR:
            if FLAGS[name].value:
                raise InputError(
                    f"--{name} needs the directory --run_dir, which is not given; "
                    f"give one or leave --{name} out"
                )
        return {}
    if FLAGS.profile and FLAGS.seeds > 1:
        raise InputError(
            f"--profile looks at the program of one seed; got --seeds={FLAGS.seeds}; "
            "leave one of them out"
        )
    if FLAGS.resume and FLAGS.overwrite:
        raise InputError(
            "--resume goes on with the run in --run_dir and --overwrite replaces it; "
            "give one of them"
        )
    folder = Path(FLAGS.run_dir)
    folders = {seed: folder / f"seed{seed}" for seed in seeds}
    if FLAGS.seeds == 1:
        folders = {config.seed: folder}
    for folder in folders.values():
        check_run_dir(folder, FLAGS.overwrite or FLAGS.resume)
    return folders


def _train(
    experiment: Experiment,
    seeds: range,
    folders: dict[int, Path],
    snapshot: Snapshot | None,
) -> list[RunRecord]:
    """Trains and tells of it; ends between two parts of an epoch if a signal comes."""
    params = None
    if FLAGS.init_from:
        source = existing_folder(FLAGS.init_from, "init_from")
        params = [read_params(source, experiment.model)] * FLAGS.seeds
    check_stopped = stop_between_parts(
        f"the same command with --resume goes on after the last checkpoint in "
        f"{FLAGS.run_dir}"
        if FLAGS.checkpoint_every
        else "nothing is kept to go on from; --run_dir with --checkpoint_every=1 does"
    )
    reports = stop_after(report_training(experiment, FLAGS.quiet), check_stopped)
    with contextlib.ExitStack() as stack:
        on_epochs = [reports.on_epoch]
        if FLAGS.tensorboard:
            images = len(experiment.dataset.train.labels)
            writer = epoch_scalars(list(folders.values()), images)
            on_epochs.insert(0, stack.enter_context(writer))

        def on_epoch(epochs: Sequence[EpochRecord]) -> None:
            for tell in on_epochs:
                tell(epochs)

        if not folders:
            runs = fit(experiment, seeds, on_epoch, params, on_part=reports.on_part)
            return [record for record, _ in runs]
        return fit_into(
            experiment,
            folders,
            on_epoch,
            params,
            on_part=reports.on_part,
            checkpoint_every=FLAGS.checkpoint_every,
            keep=FLAGS.keep,
            resume=snapshot,
        )


def main() -> None:
    """Trains as the flags say."""
    config = config_from_flags(FLAGS)
    seeds = chosen_seeds(config.seed, FLAGS.seeds)
    folders = _run_dirs(config, seeds)
    start_jax()
    dataset = load_data(config.dataset)
    snapshot = None
    if FLAGS.resume:
        finished, snapshot = resume_snapshot(folders, config, dataset.checksum)
        if finished:
            print(f"the run in {FLAGS.run_dir} is finished; more --epochs prolong it")
            return
        print(
            f"going on after epoch {snapshot.epoch}"
            if snapshot
            else f"no checkpoint in {FLAGS.run_dir}: starting from the beginning",
            flush=True,
        )
    announce_compiling(config, FLAGS.quiet)
    experiment = prepare(config, dataset, FLAGS.seeds)
    for record in _train(experiment, seeds, folders, snapshot):
        result(record)
    if FLAGS.profile:
        # Imported here for its pandas, which takes 0.3 of the 1.1 s of all imports.
        from mnist_jax.profiling.profile import format_profile, profile

        folder = Path(FLAGS.run_dir) / "profile"
        print(f"\n{format_profile(profile(experiment, folder), folder)}")


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
    define_profile_flag("--run_dir")
    flags.DEFINE_boolean(
        "overwrite",
        False,
        "replace a run that --run_dir holds; it is removed as soon as training begins",
    )
    flags.DEFINE_integer(
        "checkpoint_every",
        0,
        "epochs from one checkpoint in --run_dir to the next; 0 writes none",
        lower_bound=0,
    )
    flags.DEFINE_integer("keep", 3, "newest checkpoints that stay", lower_bound=1)
    flags.DEFINE_boolean(
        "resume", False, "go on after the last checkpoint in --run_dir, bit for bit"
    )
    define_quiet_flag()
    run_program(main)


if __name__ == "__main__":
    run()
