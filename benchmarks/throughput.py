"""Measures images per second of the train step, the train epoch and evaluation.

python -m benchmarks.throughput --models=mlp,cnn --batch_sizes=32,128 --repeats=5
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
from absl import flags

from mnist_jax.config import TrainConfig, config_from_flags, define_flags
from mnist_jax.data import Dataset, Split, epoch_indices
from mnist_jax.epochs import make_train_epoch, shard_indices, spread_seeds
from mnist_jax.errors import InputError
from mnist_jax.files import make_folder
from mnist_jax.fit import make_scale, prepare
from mnist_jax.records import append_jsonl, environment
from mnist_jax.startup import (
    chosen_models,
    define_machine_flags,
    define_models_flag,
    run_program,
    start_jax,
)
from mnist_jax.tables import markdown_table

FLAGS = flags.FLAGS
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
        `compile s`, and for each program the list of images per second by round; the
        first call of each, which is not in it, is the warm-up.
    """
    experiment = prepare(config, dataset)
    mesh, size, batch_size = experiment.mesh, FLAGS.images, config.batch_size
    keys = jax.random.key(0)[None]
    state, keys = spread_seeds((experiment.init(keys), keys), mesh)
    # An epoch of a single step: what a Python loop over batches would call.
    train_one = make_train_epoch(
        experiment.model, experiment.tx, make_scale(config, experiment.dataset), mesh
    )

    def steps(state: Any, batches: list[jax.Array]) -> Any:
        for batch in batches:
            state, _ = train_one(state, experiment.train, batch, keys)
        return state

    speeds: dict[str, list[float]] = {"step": [], "epoch": [], "evaluate": []}
    for number in range(repeats + 1):
        order = epoch_indices(0, number, size, batch_size)
        rows = order[: min(STEPS, size // batch_size)]
        batches = [shard_indices(row[None, None], mesh) for row in rows]
        state, step_seconds = timed(steps, state, batches)
        indices = shard_indices(order[None], mesh)
        (state, _), epoch_seconds = timed(
            experiment.train_epoch, state, experiment.train, indices, keys
        )
        _, eval_seconds = timed(
            experiment.evaluate, state.params, experiment.held_out, experiment.test
        )
        if number:
            speeds["step"].append(rows.size / step_seconds)
            speeds["epoch"].append(size / epoch_seconds)
            speeds["evaluate"].append(TEST_IMAGES / eval_seconds)
    return {"compile s": experiment.compile_seconds, **speeds}


def median_and_range(values: list[float]) -> str:
    """Writes the median and the range.

    >>> median_and_range([1000.0, 3000.0, 2000.0])
    '2,000 [1,000, 3,000]'
    """
    return f"{np.median(values):,.0f} [{min(values):,.0f}, {max(values):,.0f}]"


def main() -> None:
    """Measures as the flags say."""
    configs = []
    for model in chosen_models():
        for word in FLAGS.batch_sizes:
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
    start_jax()
    dataset, machine = synthetic_dataset(FLAGS.images), environment()
    rows = []
    for config in configs:
        print(f"measuring {config.model}, batch {config.batch_size} ...", flush=True)
        figures = measure(config, dataset, FLAGS.repeats)
        if FLAGS.out:
            make_folder(Path(FLAGS.out))
            record = {"config": dataclasses.asdict(config), "environment": machine}
            append_jsonl(Path(FLAGS.out) / "throughput.jsonl", {**record, **figures})
        rows.append(
            {
                "model": config.model,
                "batch": config.batch_size,
                "compile s": f"{figures['compile s']:.2f}",
                "train step images/s": median_and_range(figures["step"]),
                "train epoch images/s": median_and_range(figures["epoch"]),
                "evaluate images/s": median_and_range(figures["evaluate"]),
            }
        )
    print(
        f"\nsynthetic images on {machine['device']} ({machine['cores']} cores), jax "
        f"{machine['jax']}; median [range] over {FLAGS.repeats} rounds, compile apart\n"
    )
    print(markdown_table(pd.DataFrame(rows)))


def run() -> None:
    """Is the console script."""
    define_flags(exclude=("model", "batch_size", "dataset", "train_size", "validation"))
    define_machine_flags()
    define_models_flag("time")
    flags.DEFINE_list("batch_sizes", ["32", "128"], "batch sizes, comma-separated")
    flags.DEFINE_integer("images", 60_000, "images of an epoch", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "timed rounds", lower_bound=1)
    flags.DEFINE_string("out", None, "directory to append throughput.jsonl in")
    run_program(main)


if __name__ == "__main__":
    run()
