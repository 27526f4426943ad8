"""What the workers of `benchmarks.peers` share: job, data, clock and answer.

A worker trains one network with one framework in a process of its own and prints one
line of JSON. This module imports no framework, so that none is in another's memory.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from mnist_jax.config import MODELS, TrainConfig
from mnist_jax.errors import InputError
from mnist_jax.profiling.memory import peak_megabytes

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # they are the worker's own: its --help shows them

LEARNING_RATE = 1e-3
# av_dnn's, av_lstm's (with tanh and without dropout) and ml10_cnn's networks.
_NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": dict(hidden=(128, 128)),
    "lstm": dict(lstm_units=(128, 128), activation="tanh", hidden=(32,)),
    "cnn": dict(conv=("32:pool2", "64:pool2", "64"), hidden=(64,)),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """What to train: for one first epoch and then so many steady ones."""

    model: str
    batch_size: int
    steady_epochs: int
    seed: int = 0
    threads: int = 1
    variant: str = ""  # which form of the framework, where it has several

    @property
    def epochs(self) -> int:
        """All epochs."""
        return 1 + self.steady_epochs


class Arrays(NamedTuple):
    """The data on the host."""

    train_images: np.ndarray  # [N,28,28] uint8
    train_labels: np.ndarray  # [N] int32
    test_images: np.ndarray
    test_labels: np.ndarray


class Measurement(NamedTuple):
    """A worker's answer; what it compiles beforehand is in the first epoch's time."""

    epoch_seconds: list[float]  # the first epoch, then the steady ones
    test_accuracy: float
    parameters: int
    form: str  # choices that a reader of the framework would ask about


def peer_config(job: Job) -> TrainConfig:
    """Returns a job as a config of this project."""
    return TrainConfig(
        model=job.model,
        batch_size=job.batch_size,
        epochs=job.epochs,
        seed=job.seed,
        learning_rate=LEARNING_RATE,
        dropout=(0.0,),
        validation="none",
        **_NETWORKS[job.model],
    )


def scale(images: np.ndarray) -> np.ndarray:
    """Scales pixels once, ahead of the clock: uint8 to float32 of 0..1."""
    return images.astype(np.float32) / 255


def time_epochs(train_epoch: Callable[[], None], epochs: int) -> list[float]:
    """Returns the seconds of each call, which ends when all its work is done."""
    seconds = []
    for _ in range(epochs):
        start = time.perf_counter()
        train_epoch()
        seconds.append(time.perf_counter() - start)
    return seconds


def save_arrays(arrays: Arrays, folder: Path) -> None:
    """Writes the data for workers to load, the same for all of them."""
    for name, array in arrays._asdict().items():
        np.save(folder / f"{name}.npy", array)


def load_arrays(folder: str | None, dataset: str, train_size: int | None) -> Arrays:
    """Loads what `save_arrays` wrote or, without a folder, a data set by its name."""
    if folder is not None:
        paths = [f"{folder}/{name}.npy" for name in Arrays._fields]
        arrays = Arrays(*(np.load(path, allow_pickle=False) for path in paths))
    else:
        from mnist_jax.data.datasets import load_dataset  # brings JAX in

        loaded = load_dataset(dataset)
        arrays = Arrays(*loaded.train, *loaded.test)
    size = len(arrays.train_labels) if train_size is None else train_size
    if not 1 <= size <= len(arrays.train_labels):
        raise InputError(
            f"--train_size must be from 1 to the {len(arrays.train_labels)} training "
            f"images; got {size}"
        )
    return Arrays(arrays.train_images[:size], arrays.train_labels[:size], *arrays[2:])


def run_worker(
    measure: Callable[[Job, Arrays], Measurement], variants: Sequence[str] = ()
) -> None:
    """Parses the flags of a job, measures it and prints the answer as JSON."""
    cores = os.cpu_count() or 1
    flags.DEFINE_enum("model", "mlp", MODELS, "network")
    flags.DEFINE_integer("batch_size", 128, "images per step", lower_bound=1)
    flags.DEFINE_integer("steady_epochs", 2, "epochs after the first", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "seed of the run", lower_bound=0)
    flags.DEFINE_integer("threads", cores, "threads to compute with", lower_bound=1)
    flags.DEFINE_integer("train_size", None, "use the first N training images only")
    flags.DEFINE_string("arrays", None, "folder with the data as benchmarks.peers did")
    flags.DEFINE_string("dataset", "mnist", "data set, where --arrays is not given")
    if variants:
        flags.DEFINE_enum("variant", variants[0], variants, "form of the framework")

    def main(argv: Sequence[str]) -> None:
        try:
            if len(argv) > 1:
                raise InputError(f"unexpected argument {argv[1]!r}; see --help")
            arrays = load_arrays(FLAGS.arrays, FLAGS.dataset, FLAGS.train_size)
            job = Job(
                FLAGS.model,
                FLAGS.batch_size,
                FLAGS.steady_epochs,
                FLAGS.seed,
                FLAGS.threads,
                FLAGS.variant if variants else "",
            )
            answer = measure(job, arrays)._asdict()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        print(json.dumps({**answer, "peak_rss_mb": round(peak_megabytes())}))

    app.run(main)
