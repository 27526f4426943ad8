"""Trains a network with many settings and lists them by validation accuracy.

python -m benchmarks.sweep --vary=learning_rate=1e-3,3e-3 --vary=batch_size=32,128 \
    --models=mlp,cnn --seeds=3 --out=results/sweep

Every combination is trained, or --samples of them: a range such as
--vary='learning_rate=log(1e-4,1e-2)' is sampled. The other flags of experiments.train
apply to all. A sweep that was stopped or killed resumes with the same command. The
best settings are in --out/best.cfg, a flag file for experiments.train.
"""

import dataclasses
import time
from pathlib import Path

from absl import flags
from optuna.trial import TrialState

from mnist_jax.cli.config_flags import define_config_flags
from mnist_jax.cli.flags import (
    define_models_flag,
    define_path_flag,
    define_training_flags,
)
from mnist_jax.cli.main import (
    chosen_machine,
    run_program,
    start_jax,
    stop_between_chunks,
)
from mnist_jax.config import TrainConfig, as_text
from mnist_jax.data.datasets import load_dataset
from mnist_jax.errors import InputError
from mnist_jax.records.environment import available_cores
from mnist_jax.records.files import hold_lock
from mnist_jax.reporting.report import PICTURES, write_report
from mnist_jax.reporting.sweep_tables import (
    CSV,
    TABLE,
    as_settings,
    read_trials,
    write_trials,
)
from mnist_jax.training.run_dir import LOCK, export_runs
from mnist_jax.training.runs import HOW_TO_RESUME

from .sweep_space import (
    Params,
    combine,
    make_config,
    name_of,
    parse_space,
    sample,
)
from .sweep_worker import (
    ENDED,
    Sweep,
    Trials,
    repair_journal,
    run_on_ray,
    run_processes,
)

FLAGS = flags.FLAGS
EXPORT = "sweep.jsonl"


def _make_sweep() -> tuple[Sweep, list[Params]]:
    """Checks all flags and settings before anything is trained.

    Returns:
        What to train, and the parameters of each trial: none if workers draw them.
    """
    ray = FLAGS.engine == "ray"
    for names, needed, chosen_too in (
        (["search"], "--samples", FLAGS.samples),
        (["min_epochs", "reduction"], "--prune", FLAGS.prune),
        (["workers"], "--engine=local", not ray),
        (["address", "cpus_per_trial", "gpus_per_trial"], "--engine=ray", ray),
    ):
        for name in names:
            if FLAGS[name].present and not chosen_too:
                raise InputError(f"--{name} needs {needed}; give both or neither")
    space = parse_space(FLAGS.vary, FLAGS.models)
    fields = [f.name for f in dataclasses.fields(TrainConfig) if f.name in FLAGS]
    given = {n: as_text(value) for n in fields if (value := FLAGS[n].value) is not None}
    if FLAGS.prune and FLAGS.seeds > 1 and "patience" in given | space:
        raise InputError(
            "--prune compares the mean over seeds after each epoch, but with "
            "--patience seeds train one by one; give --seeds=1 or leave one of them out"
        )
    out, machine, first = Path(FLAGS.out), chosen_machine(), FLAGS.seed or 0
    share = max(1, available_cores() // FLAGS.workers)
    out.mkdir(parents=True, exist_ok=True)
    # Other processes train: this one must not take their memory of an accelerator.
    start_jax({**machine, "platform": "cpu", "cpu_devices": 1})
    sweep = Sweep(
        out=out.absolute(),
        space=space,
        given=given,
        dataset=load_dataset(FLAGS.dataset or "auto", FLAGS.data_dir),
        seeds=range(first, first + FLAGS.seeds),
        tpe=FLAGS.search == "tpe",
        search_seed=FLAGS.search_seed,
        prune=(FLAGS.min_epochs, FLAGS.reduction) if FLAGS.prune else None,
        machine=machine,
        cores=FLAGS.cpus_per_trial if ray else share,
        quiet=FLAGS.quiet,
    )
    if FLAGS.samples:  # for TPE a first look, since it draws others
        chosen = sample(space, FLAGS.samples, FLAGS.search_seed)
    else:
        chosen = combine(space)
    for params in chosen:
        make_config(as_settings(params), given, sweep.dataset)
    return sweep, [{}] * FLAGS.samples if sweep.tpe else chosen


def main() -> None:
    """Trains the settings given by the flags and prints their table."""
    sweep, chosen = _make_sweep()
    out = Path(FLAGS.out)
    refusal = (
        f"another process runs a sweep in {out}; wait until it ends, or give another "
        "--out"
    )
    with (
        stop_between_chunks(HOW_TO_RESUME) as check_stopped,
        hold_lock(out / LOCK, refusal),
    ):
        repair_journal(out)
        trials = Trials(sweep)
        trials.fill(chosen)
        printed = {trial.number for trial in trials.of(*ENDED)}
        earlier, began = len(printed), time.perf_counter()

        def poll() -> None:
            check_stopped()
            for trial in trials.of(*ENDED):
                if trial.number in printed or FLAGS.quiet:
                    continue
                printed.add(trial.number)
                done, total = len(printed), len(trials.of())
                seconds = (time.perf_counter() - began) / (done - earlier)
                print(
                    f"{name_of(as_settings(trial.params))}: "
                    f"{trial.user_attrs['outcome']}; {done}/{total} done, "
                    f"{seconds * (total - done):.0f} s left",
                    flush=True,
                )

        # Once, unless a process was killed between two lines of the journal.
        while trials.requeue() or trials.of(TrialState.WAITING):
            if FLAGS.engine == "ray":
                run_on_ray(sweep, FLAGS.address, FLAGS.gpus_per_trial, poll)
            else:
                run_processes(sweep, FLAGS.workers, poll)
        poll()
    if not FLAGS.quiet:
        print(f"{earlier} of {len(trials.of())} trials had ended before")
    export_runs(out, EXPORT)
    if (table := read_trials(out)).empty:
        raise InputError("no trial could be trained, for the reasons above")
    print(f"\n{write_trials(out, table)}\n\nwritten: {out}/{TABLE}, {CSV}, {EXPORT}")
    if FLAGS.report:
        print(f"written: {write_report(out)} and its pictures in {out}/{PICTURES}")


def run() -> None:
    """Entry point."""
    define_config_flags(exclude=("model",))
    define_models_flag("train", ["mlp"])
    define_training_flags()
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
