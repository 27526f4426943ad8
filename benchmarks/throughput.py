"""Measures images per second, and how long a program takes to start and to compile.

python -m benchmarks.throughput --models=mlp,cnn --batch_sizes=32,128 --repeats=5

Speeds are of the train step, the train epoch, the epoch of several seeds together
(--seeds) and evaluation, on random images. Start, compiling and memory are of programs
of their own on the data set at hand (--starts of them, in turn with an empty and a full
compilation cache).
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from absl import flags

from mnist_jax.cli.main import (
    chosen_models,
    define_machine_flags,
    define_models_flag,
    define_profile_flag,
    define_seeds_flag,
    run_program,
    start_jax,
)
from mnist_jax.config import TrainConfig, config_from_flags, define_flags
from mnist_jax.data.datasets import Dataset, Split, epoch_indices
from mnist_jax.errors import InputError
from mnist_jax.profiling.profile import format_profile, profile
from mnist_jax.records.files import make_folder
from mnist_jax.records.schema import append_jsonl, environment
from mnist_jax.reporting.tables import markdown_table, median_and_range
from mnist_jax.training.epochs import (
    make_train_epoch,
    shard_indices,
    spread_seeds,
    step_bounds,
)
from mnist_jax.training.experiment import make_scale, prepare

FLAGS = flags.FLAGS
PROGRAMS = ("step", "epoch", "together", "evaluate")
STEPS = 50  # single calls of the train step that are timed together
TEST_IMAGES = 10_000


def synthetic_dataset(size: int) -> Dataset:
    """Returns random images and labels, of which only the shapes matter."""
    rng = np.random.default_rng(0)

    def split(size: int) -> Split:
        images = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        return Split(images, rng.integers(0, 10, size).astype(np.int32))

    return Dataset("synthetic", split(size), None, split(TEST_IMAGES), "", "")


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """Calls a function and waits for its arrays: result and seconds."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return result, time.perf_counter() - start


def measure(config: TrainConfig, dataset: Dataset, repeats: int) -> dict[str, Any]:
    """Times one model at one batch size, the three programs in turn in each round.

    Returns:
        For each program the list of images per second by round; the first call of each,
        which is not in it, is the warm-up.
    """
    experiment = prepare(config, dataset)
    together = prepare(config, dataset, FLAGS.seeds) if FLAGS.seeds > 1 else None
    mesh, size, batch_size = experiment.mesh, FLAGS.images, config.batch_size
    keys = jax.random.key(0)[None]
    state, keys = spread_seeds((experiment.init(keys), keys), mesh)
    # An epoch of a single step: what a Python loop over batches would call.
    train_one = make_train_epoch(
        experiment.model, experiment.tx, make_scale(config, experiment.dataset), mesh
    )

    one_step = step_bounds(0, 1, mesh)

    def steps(state: Any, batches: list[jax.Array]) -> Any:
        for batch in batches:
            state, metrics = train_one(state, experiment.train, batch, keys, one_step)
            # As a loop must: see `make_train_epoch`.
            jax.block_until_ready(metrics)
        return state

    if together:
        all_keys = jax.random.split(jax.random.key(0), FLAGS.seeds)
        states = together.init(all_keys)
        states, all_keys = spread_seeds((states, all_keys), together.mesh)
    speeds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for number in range(repeats + 1):
        order = epoch_indices(0, number, size, batch_size)
        rows = order[: min(STEPS, size // batch_size)]
        batches = [shard_indices(row[None, None], mesh) for row in rows]
        state, step_seconds = timed(steps, state, batches)
        indices = shard_indices(order[None], mesh)
        (state, _), epoch_seconds = timed(
            experiment.train_epoch,
            state,
            experiment.train,
            indices,
            keys,
            step_bounds(0, len(order), mesh),
        )
        _, eval_seconds = timed(
            experiment.evaluate, state.params, experiment.held_out, experiment.test
        )
        if together:
            orders = np.stack([order] * FLAGS.seeds)
            (states, _), together_seconds = timed(
                together.train_epoch,
                states,
                together.train,
                shard_indices(orders, together.mesh),
                all_keys,
                step_bounds(0, len(order), together.mesh),
            )
        if number and together:
            speeds["together"].append(FLAGS.seeds * size / together_seconds)
        if number:
            speeds["step"].append(rows.size / step_seconds)
            speeds["epoch"].append(size / epoch_seconds)
            speeds["evaluate"].append(TEST_IMAGES / eval_seconds)
    return speeds


def measure_starts(config: TrainConfig) -> list[dict[str, Any]]:
    """Starts a training program with an empty, then with a full compilation cache.

    Returns:
        What `benchmarks.start_worker` prints, for each start.
    """
    words = {"model": config.model, "batch_size": config.batch_size, "epochs": 1}
    if FLAGS.data_dir:
        words["data_dir"] = FLAGS.data_dir
    starts = []
    for _ in range(FLAGS.starts):
        with tempfile.TemporaryDirectory(prefix="mnist_jax-start-") as folder:
            cache = {"MNIST_JAX_CACHE_DIR": folder, "JAX_PLATFORMS": ""}
            # A first start fills the cache of decoded data, which is to be there.
            for compile_cache in ("off", "on", "on"):
                words |= {"compile_cache": compile_cache, "began": time.time()}
                command = [f"--{name}={value}" for name, value in words.items()]
                process = subprocess.run(
                    [sys.executable, "-m", f"{__package__}.start_worker", *command],
                    cwd=Path(__file__).parent.parent,
                    env={**os.environ, **cache},
                    stdout=subprocess.PIPE,
                    text=True,
                )
                if process.returncode:
                    raise InputError(f"{config.model} did not start, see above")
                if compile_cache == "on":
                    starts.append(json.loads(process.stdout.splitlines()[-1]))
    return starts


def start_frame(starts: dict[str, list[dict[str, Any]]]) -> pd.DataFrame:
    """Returns one row per model with medians and ranges of its starts."""
    rows = []
    for model, all_starts in starts.items():
        cold = [start for start in all_starts if not start["cached"]]
        warm = [start for start in all_starts if start["cached"]]
        row = {"model": model}
        for column, figures in (
            ("start s", [start["start s"] for start in all_starts]),
            ("compile s", [start["compile s"] for start in cold]),
            ("compile s, cached", [start["compile s"] for start in warm]),
            ("peak MB", [start["peak MB"] for start in cold]),
        ):
            row[column] = median_and_range(figures, 0 if column == "peak MB" else 2)
        rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Measures as the flags say."""
    configs = []
    for model in chosen_models():
        for word in FLAGS.batch_sizes or ["none"]:
            if not (
                word.isascii() and word.isdigit() and 1 <= int(word) <= FLAGS.images
            ):
                raise InputError(
                    "--batch_sizes must be whole numbers from 1 to --images="
                    f"{FLAGS.images}; got {word}"
                )
            configs.append(
                config_from_flags(
                    FLAGS, model=model, batch_size=int(word), validation="none"
                )
            )
    if FLAGS.out:
        make_folder(Path(FLAGS.out))
    if FLAGS.profile and not FLAGS.out:
        raise InputError(
            "--profile needs the directory --out, which is not given; give one or "
            "leave --profile out"
        )
    start_jax()
    dataset, machine = synthetic_dataset(FLAGS.images), environment()
    rows = []
    for config in configs:
        print(f"measuring {config.model}, batch {config.batch_size} ...", flush=True)
        figures = measure(config, dataset, FLAGS.repeats)
        if FLAGS.out:
            record = {"config": dataclasses.asdict(config), "environment": machine}
            append_jsonl(Path(FLAGS.out) / "throughput.jsonl", {**record, **figures})
        rows.append(
            {
                "model": config.model,
                "batch": config.batch_size,
                "train step images/s": median_and_range(figures["step"]),
                "train epoch images/s": median_and_range(figures["epoch"]),
                f"{FLAGS.seeds} seeds together images/s": median_and_range(
                    figures["together"]
                ),
                "evaluate images/s": median_and_range(figures["evaluate"]),
            }
        )
    print(
        f"\nsynthetic images on {machine['device']} ({machine['cores']} cores), jax "
        f"{machine['jax']}; median [range] over {FLAGS.repeats} rounds, compile apart\n"
    )
    frame = pd.DataFrame(rows)
    print(markdown_table(frame.drop(columns=frame.columns[(frame == "-").all()])))
    if FLAGS.profile:
        for config in configs:
            name = f"{config.model}-{config.batch_size}"
            folder = Path(FLAGS.out) / "profile" / name
            found = profile(prepare(config, dataset), folder)
            print(f"\n{name}\n\n{format_profile(found, folder)}")
    starts = {}
    for config in {config.model: config for config in configs}.values():
        if FLAGS.starts:
            print(f"\nstarting {config.model} ...", flush=True)
            starts[config.model] = measure_starts(config)
    if starts:
        print(
            "\nstart: from the command to the data in memory; compiling: of all "
            "programs of a run; memory after an epoch; median [range] of "
            f"{FLAGS.starts} starts each\n"
        )
        print(markdown_table(start_frame(starts)))
        if FLAGS.out:
            record = {"environment": machine, "starts": starts}
            append_jsonl(Path(FLAGS.out) / "throughput.jsonl", record)


def run() -> None:
    """Is the console script."""
    define_flags(exclude=("model", "batch_size", "dataset", "train_size", "validation"))
    define_machine_flags()
    define_models_flag("time")
    flags.DEFINE_list("batch_sizes", ["32", "128"], "batch sizes, comma-separated")
    flags.DEFINE_integer(
        "images",
        60_000,
        "images of an epoch",
        lower_bound=1,
        upper_bound=1_000_000,  # which take 0.8 GB
    )
    flags.DEFINE_integer("repeats", 5, "timed rounds", lower_bound=1)
    define_seeds_flag(1)
    define_profile_flag("--out")
    flags.DEFINE_integer(
        "starts", 1, "starts to time with each kind of cache", lower_bound=0
    )
    flags.DEFINE_string("out", None, "directory to append throughput.jsonl in")
    run_program(main)


if __name__ == "__main__":
    run()
