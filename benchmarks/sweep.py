"""Trains a network with many settings and lists them by validation accuracy.

python -m benchmarks.sweep --vary=learning_rate=1e-3,3e-3 --vary=batch_size=32,128 \
    --models=mlp,cnn --seeds=3 --out=results/sweep

Every combination is trained, or --samples of them: a range such as
--vary='learning_rate=log(1e-4,1e-2)' is sampled. The other flags of experiments.train
apply to all. A sweep that was stopped or killed resumes with the same command. The
best settings are in --out/best.cfg, a flag file for experiments.train.
"""

import dataclasses
from pathlib import Path

from absl import flags

from mnist_jax.cli.config_flags import define_config_flags
from mnist_jax.cli.flags import (
    chosen_seeds,
    define_machine_flags,
    define_models_flag,
    define_path_flag,
    define_quiet_flag,
    define_seeds_flag,
    load_data,
)
from mnist_jax.cli.main import (
    chosen_machine,
    run_program,
    start_jax,
    stop_between_chunks,
)
from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError
from mnist_jax.records.environment import available_cores
from mnist_jax.records.files import hold_lock
from mnist_jax.reporting.report import PICTURES, write_report
from mnist_jax.reporting.sweep_tables import (
    CSV,
    FINISHED,
    TABLE,
    best_command,
    import_optuna,
    read_rows,
    write_sweep,
)
from mnist_jax.training.results import export_runs
from mnist_jax.training.runs import HOW_TO_RESUME, LOCK

from .sweep_engines import run_on_ray, run_processes
from .sweep_space import (
    Axis,
    Settings,
    check_trainable,
    combine,
    make_config,
    pairs,
    parse_space,
    sample,
)
from .sweep_worker import Progress, Queue, Sweep, Worker, repair_journal

FLAGS = flags.FLAGS
EXPORT = "sweep.jsonl"
_OF_RAY = "address", "cpus_per_trial", "gpus_per_trial"


def _check_flags(axes: list[Axis]) -> None:
    """Raises InputError for flags that exclude or require each other."""
    import_optuna()
    ranges = [axis.name for axis in axes if axis.range is not None]
    if ranges and not FLAGS.samples:
        raise InputError(
            f"--vary={ranges[0]}=... is a range, which needs --samples; give "
            "--samples=20, or values instead of the range"
        )
    if FLAGS.search == "tpe" and not FLAGS.samples:
        raise InputError("--search=tpe needs --samples; give --samples=20")
    for needed, given, names in (
        ("--prune", FLAGS.prune, ("min_epochs", "reduction")),
        ("--engine=ray", FLAGS.engine == "ray", _OF_RAY),
        ("--engine=local", FLAGS.engine == "local", ("workers",)),
    ):
        for name in names:
            if FLAGS[name].present and not given:
                raise InputError(f"--{name} needs {needed}; give both or neither")


def _make_sweep() -> tuple[Sweep, list[Settings]]:
    """Checks all flags and settings before anything is trained.

    Returns:
        What to train; and the settings, or those that stand for what TPE may draw.
    """
    axes = parse_space(FLAGS.vary, FLAGS.models)
    _check_flags(axes)
    names = [f.name for f in dataclasses.fields(TrainConfig) if f.name in FLAGS]
    base = {n: FLAGS[n].value for n in names if FLAGS[n].value is not None}
    if not FLAGS.samples:
        chosen = combine(axes)
    elif FLAGS.search == "random":
        chosen = sample(axes, FLAGS.samples, FLAGS.search_seed)
    else:
        chosen = pairs(axes)
    configs = [make_config(settings, base) for settings in chosen]
    for patience in {config.patience for config in configs} - {None}:
        if FLAGS.prune and FLAGS.seeds > 1:
            raise InputError(
                f"--prune compares the mean over seeds after each epoch, but with "
                f"--patience={patience} seeds train one by one; give --seeds=1 or "
                "leave one of them out"
            )
    Path(FLAGS.out).mkdir(parents=True, exist_ok=True)
    machine, cores = chosen_machine(), FLAGS.cpus_per_trial
    if FLAGS.engine == "local":
        cores = max(1, available_cores() // FLAGS.workers)
    if FLAGS.engine == "ray" or FLAGS.workers > 1:
        # Other processes train: this one must not take their memory of an accelerator.
        start_jax(machine._replace(platform="cpu", cpu_devices=1))
    else:
        start_jax(machine)
    dataset = load_data(configs[0].dataset)
    for settings, config in zip(chosen, configs, strict=True):
        check_trainable(settings, config, dataset, cores)
    sweep = Sweep(
        out=Path(FLAGS.out).absolute(),
        axes=axes,
        base=base,
        dataset=dataset,
        seeds=chosen_seeds(FLAGS.seed or 0, FLAGS.seeds),
        tpe=FLAGS.search == "tpe",
        search_seed=FLAGS.search_seed,
        prune=(FLAGS.min_epochs, FLAGS.reduction) if FLAGS.prune else None,
        machine=machine,
        cores=cores,
        quiet=FLAGS.quiet,
    )
    return sweep, chosen


def main() -> None:
    """Trains the settings given by the flags and prints their table."""
    sweep, chosen = _make_sweep()
    out = Path(FLAGS.out)

    def refuse() -> None:
        raise InputError(
            f"another process runs a sweep in {out}; wait until it ends, or give "
            "another --out"
        )

    with (
        stop_between_chunks(HOW_TO_RESUME) as check_stopped,
        hold_lock(out / LOCK, refuse),
    ):
        repair_journal(out)
        queue = Queue(sweep)
        queue.fill([], FLAGS.samples) if sweep.tpe else queue.fill(chosen, 0)
        progress = Progress(queue)

        def poll() -> None:
            check_stopped()
            progress.show()

        # Once, unless a process was killed between two lines of the journal.
        while queue.requeue() or queue.trials("WAITING"):
            if FLAGS.engine == "ray":
                run_on_ray(sweep, FLAGS.address, FLAGS.gpus_per_trial, poll)
            elif FLAGS.workers > 1:
                run_processes(sweep, FLAGS.workers, poll)
            else:
                worker = Worker(sweep, 0, check_stopped)
                while worker.train_next():
                    progress.show()
        progress.close()
    export_runs(out, EXPORT)
    if not (rows := read_rows(out)):
        raise InputError("no trial could be trained, for the reasons above")
    print(f"\n{write_sweep(out, rows)}\n\nwritten: {out}/{TABLE}, {CSV}, {EXPORT}")
    if rows[0].state == FINISHED:
        print(f"best: {best_command(out, rows[0])}")
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
    flags.DEFINE_enum(
        "engine", "local", ["local", "ray"], "where the trials are trained"
    )
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
