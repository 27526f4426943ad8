"""Trains a network with many settings and lists them by validation accuracy.

python -m benchmarks.sweep --vary=learning_rate=1e-3,3e-3 --vary=batch_size=32,128 \
    --models=mlp,cnn --seeds=3 --out=results/sweep

Every combination is trained, or --samples of them: a range such as
--vary='learning_rate=log(1e-4,1e-2)' is sampled. The other flags of experiments.train
apply to all. A sweep that was stopped or killed resumes with the same command. The
best settings are in --out/best.cfg, a flag file for experiments.train.
"""

import dataclasses
import itertools
import re
import time
import typing
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from absl import flags
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
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
from mnist_jax.reporting.sweep_tables import CSV, TABLE, read_trials, write_trials
from mnist_jax.training.run_dir import LOCK, export_runs
from mnist_jax.training.runs import HOW_TO_RESUME

from .sweep_worker import (
    Space,
    Start,
    Sweep,
    make_config,
    open_study,
    start_on_ray,
    start_processes,
)

FLAGS = flags.FLAGS
EXPORT = "sweep.jsonl"


def parse_axis(text: str) -> tuple[str, BaseDistribution]:
    """Parses a `--vary`.

    Values are separated by commas, or by semicolons if there is one, so that a value
    may have commas. A semicolon at the end is dropped.

    >>> parse_axis("hidden=128,128;256")
    ('hidden', CategoricalDistribution(choices=('128,128', '256')))
    >>> parse_axis("learning_rate=log(1e-4,1e-2)")
    ('learning_rate', FloatDistribution(high=0.01, log=True, low=0.0001, step=None))
    """
    name, _, values = (word.strip() for word in text.partition("="))
    hint = typing.get_type_hints(TrainConfig).get(name)
    if hint is None or name in ("model", "seed", "dataset"):
        raise InputError(
            f"--vary={text}: give a flag of experiments.train, as in "
            "learning_rate=1e-3,3e-3; networks are given by --models, seeds by --seed "
            "and --seeds, and accuracies on different data do not compare"
        )
    if match := re.fullmatch(r"(log|uniform)\(([^,;]+),([^,;]+)\)", values):
        kind, low, high = match.groups()
        try:
            if int in (hint, *typing.get_args(hint)):
                return name, IntDistribution(int(low), int(high), kind == "log")
            return name, FloatDistribution(float(low), float(high), kind == "log")
        except ValueError as error:
            raise InputError(f"--vary={text}: {error}") from error
    separator = ";" if ";" in values else ","
    items = [item.strip() for item in values.removesuffix(";").split(separator)]
    return name, CategoricalDistribution(list(dict.fromkeys(items)))


def parse_space(texts: Sequence[str], models: Sequence[str]) -> Space:
    """Parses all `--vary`; the first axis is the model."""
    space: Space = {"model": CategoricalDistribution(list(dict.fromkeys(models)))}
    for name, axis in map(parse_axis, texts):
        if name in space:
            raise InputError(f"--vary={name}=... is given twice; join the values")
        space[name] = axis
    # One program serves all learning rates: they come one after the other.
    return dict(sorted(space.items(), key=lambda item: item[0] == "learning_rate"))


def combine(space: Space) -> list[dict[str, Any]]:
    """Returns all combinations of the values; raises InputError for a range."""
    choices = []
    for name, axis in space.items():
        if not isinstance(axis, CategoricalDistribution):
            raise InputError(
                f"--vary={name}=... is a range, which needs --samples; give "
                "--samples=20, or values instead of the range"
            )
        choices.append(axis.choices)
    return [dict(zip(space, v, strict=True)) for v in itertools.product(*choices)]


def _make_sweep(out: Path) -> Sweep:
    """Checks all flags and settings, and adds the trials to the journal."""
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
    machine, first = chosen_machine(), FLAGS.seed or 0
    # Other processes train: this one must not take their memory of an accelerator.
    start_jax(platform="cpu", cpu_devices=1)
    dataset = load_dataset(FLAGS.dataset or "auto", FLAGS.data_dir)
    grid = [] if FLAGS.samples else combine(space)
    for params in grid:
        make_config(params, given, dataset)
    share = max(1, available_cores() // FLAGS.workers)
    cores = FLAGS.cpus_per_trial if ray else share
    pruner = optuna.pruners.SuccessiveHalvingPruner(FLAGS.min_epochs, FLAGS.reduction)
    tpe = FLAGS.search == "tpe"
    sweep = Sweep(
        out=out.absolute(),
        study=open_study(out, pruner if FLAGS.prune else optuna.pruners.NopPruner()),
        space=space,
        sampler=optuna.samplers.TPESampler if tpe else optuna.samplers.RandomSampler,
        search_seed=FLAGS.search_seed,
        given=given,
        dataset=dataset,
        seeds=range(first, first + FLAGS.seeds),
        machine={**machine, "cpu_devices": machine["cpu_devices"] or cores},
        cores=cores,
        gpus=FLAGS.gpus_per_trial if ray else 1 / FLAGS.workers,
    )
    sweep.add(grid or [{}] * FLAGS.samples)
    return sweep


def train_sweep(sweep: Sweep, start: Start, quiet: bool = False) -> None:
    """Trains the trials that have not ended, and prints each that ends.

    `start` starts workers within a context, and yields whether one still works.
    """
    printed = {trial.number for trial in sweep.trials() if trial.state.is_finished()}
    total = len(sweep.trials())

    def print_ended() -> None:
        for trial in sweep.trials():
            if trial.state.is_finished() and trial.number not in printed:
                printed.add(trial.number)
                if not quiet:
                    done = f"{len(printed)}/{total} done"
                    print(f"{trial.user_attrs['outcome']}; {done}", flush=True)

    if not quiet:
        print(f"{len(printed)} of {total} trials had ended before")
    sweep.requeue(deaths=0)
    while sweep.trials(TrialState.WAITING):
        # In this order, since Ray sets handlers of signals too.
        with start() as working, stop_between_chunks(HOW_TO_RESUME) as check_stopped:
            while working():
                check_stopped()
                print_ended()
                time.sleep(0.1)
        print_ended()
        if sweep.requeue(deaths=1):
            print("a worker died; what it trained is resumed", flush=True)
        elif sweep.trials(TrialState.WAITING):
            raise InputError("all workers died before they trained")


def main() -> None:
    """Trains the settings given by the flags and prints their table."""
    out = Path(FLAGS.out)
    refusal = (
        f"another process runs a sweep in {out}; wait until it ends, or give another "
        "--out"
    )
    with hold_lock(out / LOCK, refusal):
        sweep = _make_sweep(out)
        if FLAGS.engine == "ray":
            start = partial(start_on_ray, sweep, FLAGS.address)
        else:
            start = partial(start_processes, sweep, FLAGS.workers)
        train_sweep(sweep, start, FLAGS.quiet)
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
    flags.DEFINE_integer("samples", 0, "settings to sample; 0 trains all", 0)
    flags.DEFINE_enum("search", "random", ["random", "tpe"], "sampler of Optuna")
    flags.DEFINE_integer("search_seed", 0, "seed of the sampling", 0)
    help = "stop trials early by their validation accuracy (ASHA)"
    flags.DEFINE_boolean("prune", False, help)
    flags.DEFINE_integer("min_epochs", 1, "epochs before --prune stops a trial", 1)
    flags.DEFINE_integer("reduction", 2, "--prune keeps one of this many each time", 2)
    flags.DEFINE_enum("engine", "local", ["local", "ray"], "where trials are trained")
    flags.DEFINE_integer("workers", 1, "processes that share the cores", 1)
    flags.DEFINE_string("address", "auto", "address of the Ray cluster")
    flags.DEFINE_integer("cpus_per_trial", 1, "CPUs that a trial takes on Ray", 1)
    flags.DEFINE_float("gpus_per_trial", 0, "GPUs that a trial takes on Ray", 0)
    help = "also write report.html and its pictures to --out"
    flags.DEFINE_boolean("report", False, help)
    run_program(main)


if __name__ == "__main__":
    run()
