"""Measures images per second and the time to start and to compile.

python -m benchmarks.throughput --models=mlp,cnn --batch_sizes=32,128 --repeats=5

Images per second are measured for the train step, the train epoch and evaluation, on
random images, for each of --models, --batch_sizes, --precisions and --seeds (trained
together). Start-up and compile time and peak memory are measured in separate processes
on the available dataset: --starts of them with an empty and with a full compilation
cache.
"""

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from absl import flags

from mnist_jax.cli.config_flags import config_from_flags, define_config_flags
from mnist_jax.cli.flags import (
    define_cluster_flags,
    define_list_flag,
    define_machine_flags,
    define_models_flag,
    define_path_flag,
    define_precisions_flag,
    define_profile_flag,
)
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.config import TrainConfig, as_text, changed_fields
from mnist_jax.data.batches import epoch_indices
from mnist_jax.data.types import Dataset, Split
from mnist_jax.errors import InputError
from mnist_jax.profiling.profile import profile
from mnist_jax.records.environment import Environment, current_environment
from mnist_jax.records.files import check_append
from mnist_jax.records.schema import append_jsonl
from mnist_jax.reporting.statistics import median_range
from mnist_jax.reporting.tables import markdown_table
from mnist_jax.training import distributed
from mnist_jax.training.prepare import prepare

from .processes import Worker

FLAGS = flags.FLAGS
STEPS = 50  # calls of the train step that are timed together
TEST_IMAGES = 10_000


@dataclasses.dataclass(frozen=True)
class ThroughputRecord:
    """Images per second of one config, by round."""

    environment: Environment
    config: dict[str, Any]  # fields of `TrainConfig`
    seeds: int  # trained together; the images are those of all
    step: list[float]
    epoch: list[float]
    evaluate: list[float]
    starts: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def synthetic_dataset(size: int) -> Dataset:
    """Returns a dataset of random images and labels."""
    rng = np.random.default_rng(0)

    def split(size: int) -> Split:
        images = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        return Split(images, rng.integers(0, 10, size).astype(np.int32))

    return Dataset(split(size), split(TEST_IMAGES), classes=10, name="synthetic")


def measure(
    config: TrainConfig, dataset: Dataset, repeats: int, seeds: int
) -> dict[str, list[float]]:
    """Times single steps, an epoch and an evaluation in each round.

    Returns:
        Images per second of each by round, after one warm-up round.
    """
    experiment = prepare(config, dataset, seeds)
    programs, split = experiment.programs, experiment.train
    states, run_keys = programs.init_run(range(seeds))
    speeds: dict[str, list[float]] = {"step": [], "epoch": [], "evaluate": []}
    for number in range(repeats + 1):
        size = experiment.config.batch_size
        order = epoch_indices(0, number, len(dataset.train.labels), size)
        indices = programs.shard(np.stack([order] * seeds))
        keys = programs.epoch_keys(run_keys, number)
        steps = min(STEPS, max(1, len(order) - 1))  # the last batch may be smaller
        ticks = [time.perf_counter()]
        for step in range(steps):  # one call per step, as in a Python loop
            states, metrics = programs.run_steps(
                states, split, indices, keys, step, step + 1
            )
            jax.block_until_ready(metrics)
        ticks.append(time.perf_counter())
        states, metrics = programs.run_steps(states, split, indices, keys)
        jax.block_until_ready(metrics)
        ticks.append(time.perf_counter())
        jax.block_until_ready(
            programs.evaluate(states.variables, experiment.held_out, experiment.test)
        )
        ticks.append(time.perf_counter())
        images = (order[:steps] >= 0).sum(), (order >= 0).sum(), TEST_IMAGES
        print(f"round {number} of {repeats}" if number else "warm-up", flush=True)
        if number:
            rates = seeds * np.array(images) / np.diff(ticks)
            for name, rate in zip(speeds, rates, strict=True):
                speeds[name].append(float(rate))
    return speeds


def start_settings(config: TrainConfig) -> dict[str, Any]:
    """Returns the flags of `measure_starts` for one epoch of a config."""
    changed = {**changed_fields(config, "mnist"), "epochs": 1}
    flags = {name: as_text(value) for name, value in changed.items()}
    return {"model": config.model, **flags}


def measure_starts(
    name: str, settings: dict[str, Any], count: int
) -> list[dict[str, Any]]:
    """Times starts of a training program with an empty and a full compilation cache.

    Args:
        name: of what is started, for messages.
        settings: its config flags; those of the machine are as for this program.
        count: starts with each cache.

    Returns:
        The results of `benchmarks.start_worker`, an empty and a full cache in turns.
    """
    machine = {"data_dir": FLAGS.data_dir, "platform": FLAGS.platform}
    settings = settings | {flag: value for flag, value in machine.items() if value}
    starts: list[dict[str, Any]] = []
    for number in range(1, count + 1):
        print(f"\nstarting {name}, {number} of {count} ...", flush=True)
        with tempfile.TemporaryDirectory(prefix="mnist_jax-start-") as folder:
            cache = {"MNIST_JAX_CACHE_DIR": folder, "JAX_COMPILATION_CACHE_DIR": ""}
            for compile_cache in ("off", "on", "on"):
                settings |= {"compile_cache": compile_cache, "began": time.time()}
                command = [f"--{name}={value}" for name, value in settings.items()]
                module = f"{__package__}.start_worker"
                with Worker(module, *command, environment=cache) as worker:
                    starts.append(worker.read())
        del starts[-3]  # which filled the cache of decoded data
    return starts


def throughput_frame(records: Sequence[ThroughputRecord]) -> pd.DataFrame:
    """Returns one row per record: medians and ranges over its rounds."""
    return pd.DataFrame(
        {
            "model": record.config["model"],
            "batch": record.config["batch_size"],
            "precision": record.config["precision"],
            "seeds": record.seeds,
            "train step images/s": f"{median_range(record.step):,.0f}",
            "train epoch images/s": f"{median_range(record.epoch):,.0f}",
            "evaluate images/s": f"{median_range(record.evaluate):,.0f}",
        }
        for record in records
    )


def start_frame(starts: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """Returns one row per model: medians and ranges of its starts."""
    rows = []
    for model, both in starts.items():
        cold, warm = ([s for s in both if s["cached"] == c] for c in (False, True))
        columns = {
            "start s": ("start s", both, ".2f"),
            "compile s": ("compile s", cold, ".2f"),
            "compile s, cached": ("compile s", warm, ".2f"),
            "peak MB": ("peak MB", cold, ",.0f"),
        }
        texts = {
            column: format(median_range([run[name] for run in runs]), spec)
            for column, (name, runs, spec) in columns.items()
        }
        rows.append({"model": model, **texts})
    return pd.DataFrame(rows)


def main() -> None:
    """Runs the measurements and prints the tables."""
    if FLAGS.profile and not FLAGS.out:
        raise InputError("--profile needs --out; set it or leave --profile out")
    choices = itertools.product(FLAGS.models, FLAGS.batch_sizes, FLAGS.precisions)
    configs = [
        config_from_flags(
            FLAGS, model=model, batch_size=size, precision=name, validation="none"
        ).for_dataset("mnist")
        for model, size, name in choices
    ]
    out = Path(FLAGS.out) if FLAGS.out else None
    if out:
        check_append(out / "throughput.jsonl")
    start_jax()
    dataset, machine = synthetic_dataset(FLAGS.images), current_environment()
    records: list[ThroughputRecord] = []
    starts: dict[str, list[dict[str, Any]]] = {}
    plan = list(itertools.product(configs, FLAGS.seeds))
    for number, (config, seeds) in enumerate(plan, start=1):
        name = f"{config.model}, batch {config.batch_size}"
        print(f"measuring {name} ({number} of {len(plan)}) ...", flush=True)
        figures: dict[str, Any] = measure(config, dataset, FLAGS.repeats, seeds)
        if FLAGS.starts and config.model not in starts:
            starts[config.model] = figures["starts"] = measure_starts(
                config.model, start_settings(config), FLAGS.starts
            )
        records.append(ThroughputRecord(machine, vars(config), seeds, **figures))
        if out and distributed.is_writer():
            append_jsonl(out / "throughput.jsonl", records[-1])
    print(
        f"\nsynthetic images on {machine.device} ({machine.cores} cores), jax "
        f"{machine.jax}; median [range] of {FLAGS.repeats} rounds without compilation\n"
    )
    print(markdown_table(throughput_frame(records)))
    if FLAGS.profile and out:
        for config in configs:
            name = f"{config.name}-{config.batch_size}"
            folder = out / "profile" / name
            print(f"\n{name}\n\n{profile(prepare(config, dataset), folder)}")
    if starts:
        print(
            "\nstart: from the command to the dataset in memory; compile: all programs "
            "of a run; peak MB: after an epoch; median [range] of "
            f"{FLAGS.starts} starts each\n"
        )
        print(markdown_table(start_frame(starts)))


def run() -> None:
    """Entry point."""
    chosen = "model", "batch_size", "precision", "dataset", "train_size"
    define_config_flags(exclude=(*chosen, "validation", "patience"))
    define_machine_flags()
    define_cluster_flags()
    define_models_flag("time")
    positive = flags.IntegerParser(1).parse
    define_list_flag("batch_sizes", [32, 128], "batch sizes", positive)
    most = 1_000_000  # 0.8 GB of images
    flags.DEFINE_integer("images", 60_000, "images per epoch", 1, most)
    flags.DEFINE_integer("repeats", 5, "timed rounds", 1)
    define_precisions_flag()
    define_list_flag("seeds", [1], "numbers of seeds trained together", positive)
    define_profile_flag("--out")
    flags.DEFINE_integer("starts", 1, "timed starts with each cache; 0 for none", 0)
    define_path_flag("out", None, "directory of the throughput.jsonl to append to")
    run_program(main)


if __name__ == "__main__":
    run()
