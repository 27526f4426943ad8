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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
)
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import DIGITS, Dataset, Split
from mnist_jax.profiling.profile import time_epochs
from mnist_jax.records.environment import Environment, current_environment
from mnist_jax.records.files import check_append
from mnist_jax.records.schema import append_jsonl
from mnist_jax.reporting.statistics import median_range
from mnist_jax.reporting.tables import markdown_table
from mnist_jax.training import distributed
from mnist_jax.training.prepare import prepare

from .starts import measure_starts

FLAGS = flags.FLAGS
STEPS = 50  # single calls of the train step that are timed together
TEST_IMAGES = 10_000


@dataclasses.dataclass(frozen=True)
class ThroughputRecord:
    """Images per second of one config, by round."""

    environment: Environment
    config: TrainConfig
    seeds: int  # trained together; the images are those of all
    step: list[float]
    epoch: list[float]
    evaluate: list[float]
    starts: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def table_key(self) -> tuple[str | int, ...]:
        """Returns the values that must be equal within a table."""
        return self.environment.compared()


def synthetic_dataset(size: int) -> Dataset:
    """Returns a dataset of random images and labels."""
    rng = np.random.default_rng(0)

    def split(size: int) -> Split:
        images = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        return Split(images, rng.integers(0, 10, size).astype(np.int32))

    return Dataset(
        split(size), split(TEST_IMAGES), class_names=DIGITS, name="synthetic"
    )


def measure(
    config: TrainConfig, dataset: Dataset, repeats: int, seeds: int
) -> dict[str, list[float]]:
    """Times single steps, an epoch and an evaluation in each round.

    Returns:
        Images per second of each by round, after one warm-up round.
    """
    experiment = prepare(config, dataset, seeds)
    size, images = experiment.config.batch_size, len(dataset.train.labels)
    steps = min(STEPS, images // size)
    # One call per step, as in a Python loop.
    loops = time_epochs(experiment, chunks=[(n, n + 1) for n in range(steps)])
    epochs = time_epochs(experiment, experiment.test)
    speeds: dict[str, list[float]] = {"step": [], "epoch": [], "evaluate": []}
    for number in range(repeats + 1):
        loop, epoch = next(loops), next(epochs)
        print(f"round {number} of {repeats}" if number else "warm-up", flush=True)
        if number:
            speeds["step"].append(seeds * steps * size / loop["training steps"])
            speeds["epoch"].append(seeds * images / epoch["training steps"])
            speeds["evaluate"].append(seeds * TEST_IMAGES / epoch["evaluation"])
    return speeds


def throughput_frame(records: Sequence[ThroughputRecord]) -> pd.DataFrame:
    """Returns one row per record: medians and ranges over its rounds."""
    return pd.DataFrame(
        {
            "model": record.config.model,
            "batch": record.config.batch_size,
            "precision": record.config.precision,
            "seeds": record.seeds,
            "train step images/s": f"{median_range(record.step):,.0f}",
            "train epoch images/s": f"{median_range(record.epoch):,.0f}",
            "evaluate images/s": f"{median_range(record.evaluate):,.0f}",
        }
        for record in records
    )


def start_frame(records: Sequence[ThroughputRecord]) -> pd.DataFrame:
    """Returns one row per record that has starts: their medians and ranges."""
    rows = []
    for record in filter(lambda record: record.starts, records):
        starts = pd.DataFrame(record.starts)
        cold, warm = starts[~starts["cached"]], starts[starts["cached"]]
        columns = {
            "start s": f"{median_range([*warm['start s']]):.2f}",
            "compile s": f"{median_range([*cold['compile s']]):.2f}",
            "compile s, cached": f"{median_range([*warm['compile s']]):.2f}",
            "peak MB": f"{median_range([*cold['peak MB']]):,.0f}",
        }
        rows.append({"model": record.config.model, **columns})
    return pd.DataFrame(rows)


def main() -> None:
    """Runs the measurements and prints the tables."""
    choices = itertools.product(FLAGS.models, FLAGS.batch_sizes, FLAGS.precisions)
    configs = [
        config_from_flags(
            FLAGS, model=model, batch_size=size, precision=name, validation="none"
        ).for_dataset("mnist")
        for model, size, name in choices
    ]
    out = Path(FLAGS.out) / "throughput.jsonl"
    check_append(out)
    start_jax()
    dataset, machine = synthetic_dataset(FLAGS.images), current_environment()
    records: list[ThroughputRecord] = []
    plan = list(itertools.product(configs, FLAGS.seeds))
    for number, (config, seeds) in enumerate(plan, start=1):
        name = f"{config.model}, batch {config.batch_size}"
        print(f"measuring {name} ({number} of {len(plan)}) ...", flush=True)
        speeds = measure(config, dataset, FLAGS.repeats, seeds)
        started = any(record.config.model == config.model for record in records)
        starts = [] if started else measure_starts(config, FLAGS.starts)
        records.append(
            ThroughputRecord(machine, config, seeds, starts=starts, **speeds)
        )
        if distributed.is_writer():
            append_jsonl(out, records[-1])
    print(
        f"\nsynthetic images on {machine.device} ({machine.cores} cores), jax "
        f"{machine.jax}; median [range] of {FLAGS.repeats} rounds without compilation\n"
        f"\n{markdown_table(throughput_frame(records))}"
    )
    if FLAGS.starts:
        print(
            "\nstart: from the command to the dataset in memory; compile: all programs "
            "of a run; peak MB: after an epoch; median [range] of "
            f"{FLAGS.starts} starts each\n\n{markdown_table(start_frame(records))}"
        )


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
    flags.DEFINE_integer("starts", 1, "timed starts with each cache; 0 for none", 0)
    define_path_flag("out", "results", "folder of the throughput.jsonl to append to")
    run_program(main)


if __name__ == "__main__":
    run()
