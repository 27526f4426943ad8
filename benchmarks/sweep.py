"""Trains a network with many settings and lists them by validation accuracy.

python -m benchmarks.sweep --vary=learning_rate=1e-3,3e-3 --vary=batch_size=32,128 \
    --models=mlp,cnn --seeds=3 --out=results/sweep

Every combination is trained, or --samples of them: a range such as
--vary='learning_rate=log(1e-4,1e-2)' is sampled. The other flags of experiments.train
apply to all. A sweep that was stopped or killed resumes with the same command. The
best settings are in --out/best.cfg, a flag file for experiments.train.
"""

from collections.abc import Callable
from pathlib import Path

from absl import flags

from mnist_jax.cli.config_flags import define_config_flags
from mnist_jax.cli.flags import (
    chosen_models,
    chosen_seeds,
    define_machine_flags,
    define_models_flag,
    define_path_flag,
    define_quiet_flag,
    define_seeds_flag,
    load_data,
)
from mnist_jax.cli.main import chosen_machine, run_program, start_jax
from mnist_jax.cli.signals import stop_between_chunks
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.records.environment import available_cores
from mnist_jax.records.files import hold_lock, make_folder
from mnist_jax.reporting.report import PICTURES, write_report
from mnist_jax.reporting.sweep_tables import (
    CSV,
    TABLE,
    best_command,
    read_rows,
    write_sweep,
)
from mnist_jax.training.study import export_runs
from mnist_jax.training.sweep import HOW_TO_RESUME, LOCK
from mnist_jax.training.trials import FINISHED, find_trials

from .sweeps.driver import Sweep
from .sweeps.local import run_here, run_processes
from .sweeps.progress import Progress
from .sweeps.search import ListSearch, Pruner, TpeSearch, import_optuna, sample
from .sweeps.space import (
    Axis,
    Settings,
    check_trainable,
    combine,
    make_config,
    pairs,
    parse_space,
)

FLAGS = flags.FLAGS
EXPORT = "sweep.jsonl"
ENGINES = "local", "ray"
_OF_RAY = "address", "cpus_per_trial", "gpus_per_trial"


def _check_flags(axes: list[Axis]) -> None:
    """Raises InputError for flags that exclude or require each other."""
    ranges = [axis.name for axis in axes if axis.range is not None]
    if ranges and not FLAGS.samples:
        raise InputError(
            f"--vary={ranges[0]}=... is a range, which needs --samples; give "
            "--samples=20, or values instead of the range"
        )
    if FLAGS.search == "tpe" and not FLAGS.samples:
        raise InputError("--search=tpe needs --samples; give --samples=20")
    for name in ("min_epochs", "reduction"):
        if FLAGS[name].present and not FLAGS.prune:
            raise InputError(f"--{name} needs --prune; give both or neither")
    for name in _OF_RAY:
        if FLAGS[name].present and FLAGS.engine != "ray":
            raise InputError(f"--{name} needs --engine=ray; give both or neither")
    if FLAGS["workers"].present and FLAGS.engine == "ray":
        raise InputError(
            "--workers is for --engine=local; Ray runs as many trials as its nodes "
            "have CPUs for, by --cpus_per_trial"
        )
    if FLAGS.prune:
        import_optuna("--prune")


def _check_patience(config: TrainConfig) -> None:
    """Raises InputError if --prune cannot compare the epochs of a config."""
    if FLAGS.prune and config.patience is not None and FLAGS.seeds > 1:
        raise InputError(
            f"--prune compares the mean over seeds after each epoch, but with "
            f"--patience={config.patience} seeds train one by one; give --seeds=1 or "
            "leave one of them out"
        )


def _cores_per_trial() -> int:
    """Returns the cores of a trial, and so the devices that JAX has there."""
    if FLAGS.engine == "ray":
        return int(FLAGS.cpus_per_trial)
    return max(1, available_cores() // FLAGS.workers)


def _check_settings() -> tuple[list[Axis], list[Settings], Dataset]:
    """Checks all flags and settings before anything is trained.

    Returns:
        The axes; the settings to train, or those that stand for what TPE may draw; and
        the data.
    """
    axes = parse_space(FLAGS.vary, chosen_models(custom=True))
    _check_flags(axes)
    if not FLAGS.samples:
        chosen = combine(axes)
    elif FLAGS.search == "random":
        chosen = sample(axes, FLAGS.samples, FLAGS.search_seed)
    else:
        chosen = pairs(axes)
    configs = [make_config(settings, FLAGS) for settings in chosen]
    for config in configs:
        _check_patience(config)
    make_folder(Path(FLAGS.out))
    machine = chosen_machine()
    if FLAGS.engine == "ray" or FLAGS.workers > 1:
        # Other processes train: this one must not take their memory of an accelerator.
        machine = machine._replace(platform="cpu", cpu_devices=1)
    start_jax(machine)
    dataset = load_data(configs[0].dataset)
    for settings, config in zip(chosen, configs, strict=True):
        check_trainable(settings, config, dataset, _cores_per_trial())
    return axes, chosen, dataset


def _make_search(
    axes: list[Axis], chosen: list[Settings], out: Path
) -> ListSearch | TpeSearch:
    """Returns the search that the flags ask for."""
    if FLAGS.search == "random":
        return ListSearch(chosen)
    # Another seed after a restart: what was drawn before is not drawn again.
    return TpeSearch(axes, FLAGS.samples, FLAGS.search_seed + len(find_trials(out)))


def _train(sweep: Sweep, check_stopped: Callable[[], None]) -> None:
    """Trains all trials on the engine that the flags ask for."""
    if FLAGS.engine == "ray":
        from .sweeps.ray_engine import run_on_ray

        resources = FLAGS.cpus_per_trial, FLAGS.gpus_per_trial
        run_on_ray(sweep, FLAGS.address, *resources, chosen_machine(), check_stopped)
    elif FLAGS.workers > 1:
        run_processes(sweep, FLAGS.workers, chosen_machine(), check_stopped)
    else:
        run_here(sweep, check_stopped)


def main() -> None:
    """Trains the settings given by the flags and prints their table."""
    axes, chosen, dataset = _check_settings()
    seeds = chosen_seeds(FLAGS.seed or 0, FLAGS.seeds)
    out, progress = Path(FLAGS.out), Progress(FLAGS.quiet)

    def config_of(settings: Settings) -> TrainConfig:
        config = make_config(settings, FLAGS)
        if FLAGS.search == "tpe":  # only pairs of its values have been checked
            check_trainable(settings, config, dataset, _cores_per_trial())
        return config

    def wait(holder: str) -> None:
        progress.note(f"waiting for {holder}, which runs a sweep in {out}")

    with stop_between_chunks(HOW_TO_RESUME) as check_stopped:
        with hold_lock(out / LOCK, wait, check_stopped), progress:
            search = _make_search(axes, chosen, out)
            pruner = Pruner(FLAGS.min_epochs, FLAGS.reduction) if FLAGS.prune else None
            sweep = Sweep(out, dataset, seeds, search, config_of, pruner, progress)
            _train(sweep, check_stopped)
    export_runs(out, EXPORT)
    print(f"\n{write_sweep(out)}\n\nwritten: {out}/{TABLE}, {CSV}, {EXPORT}")
    if (best := read_rows(out)[0]).state == FINISHED:
        print(f"best: {best_command(out, best)}")
    if FLAGS.report:
        print(f"written: {write_report(out)} and its pictures in {out}/{PICTURES}")


def run() -> None:
    """Entry point."""
    define_config_flags(exclude=("model",))
    define_machine_flags()
    define_models_flag("train", ["mlp"])
    define_seeds_flag(1)
    define_quiet_flag()
    define_path_flag("out", "results/sweep", "folder for the runs and their table")
    flags.DEFINE_multi_string(
        "vary",
        [],
        "flag of experiments.train with its values, as in learning_rate=1e-3,3e-3; "
        "values that have commas are separated by semicolons, as in hidden=64;128,128; "
        "a range is log(1e-4,1e-2) or uniform(0,0.5); repeat it for each flag",
    )
    flags.DEFINE_integer(
        "samples", 0, "settings to sample; 0 trains all combinations", lower_bound=0
    )
    flags.DEFINE_enum(
        "search", "random", ["random", "tpe"], "how --samples are drawn, by Optuna"
    )
    flags.DEFINE_integer("search_seed", 0, "seed of the sampling", lower_bound=0)
    flags.DEFINE_boolean(
        "prune", False, "stop trials early by their validation accuracy (ASHA)"
    )
    flags.DEFINE_integer(
        "min_epochs", 1, "epochs before --prune first stops a trial", lower_bound=1
    )
    flags.DEFINE_integer(
        "reduction", 2, "--prune keeps one of this many trials each time", lower_bound=2
    )
    flags.DEFINE_enum("engine", "local", ENGINES, "where the trials are trained")
    flags.DEFINE_integer(
        "workers", 1, "processes side by side, which share the cores", lower_bound=1
    )
    flags.DEFINE_string("address", "auto", "address of the Ray cluster")
    flags.DEFINE_integer(
        "cpus_per_trial", 1, "CPUs that a trial takes on Ray", lower_bound=1
    )
    flags.DEFINE_float(
        "gpus_per_trial", 0, "GPUs that a trial takes on Ray", lower_bound=0
    )
    flags.DEFINE_boolean(
        "report", False, "also write report.html and its pictures to --out"
    )
    run_program(main)


if __name__ == "__main__":
    run()
