"""Shared code of the `benchmarks.peers` workers: job, data, timing and result.

A worker trains one network with one framework in a separate process and prints one line
of JSON. This module imports no framework, so that none adds to another's memory.
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
from absl import flags

from mnist_jax.cli.parsing import parse_flags
from mnist_jax.config import MODELS, TrainConfig
from mnist_jax.errors import InputError
from mnist_jax.profiling.memory import peak_megabytes

FLAGS = flags.FLAGS

LEARNING_RATE = 1e-3
# The networks of the presets av_dnn, av_lstm (with tanh, without dropout) and ml10_cnn.
_NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": dict(hidden=(128, 128)),
    "lstm": dict(lstm_units=(128, 128), activation="tanh", hidden=(32,)),
    "cnn": dict(conv=("32:pool2", "64:pool2", "64"), hidden=(64,)),
}
# Networks as users write them, in `examples/`.
EXAMPLES = (
    "lenet.py:LeNet",
    "vgg.py:VGG",
    "resnet.py:ResNet",
    "mobilenet.py:MobileNet",
    "convnext.py:ConvNeXt",
    "dilated.py:Dilated",
    "unet.py:UNet",
    "nnx_cnn.py:CNN",
    "mixer.py:Mixer",
    "vit.py:ViT",
    "lstm.py:LSTM",
    "gru.py:GRU",
)
_FOLDER = Path(__file__).parents[2] / "examples"


@dataclasses.dataclass(frozen=True)
class Job:
    """What to train, and for how many epochs."""

    model: str
    batch_size: int
    steady_epochs: int
    seed: int = 0
    threads: int = 1
    variant: str = ""  # of the framework, if it has several
    takes_turns: bool = False

    @property
    def epochs(self) -> int:
        """The number of epochs, including the first."""
        return 1 + self.steady_epochs

    def end_turn(self, epochs_done: int) -> None:
        """Lets the other workers train, until a line on stdin gives the next turn."""
        if self.takes_turns and epochs_done < self.epochs:
            print(json.dumps({"epoch": epochs_done}), flush=True)
            sys.stdin.readline()


class Arrays(NamedTuple):
    """The dataset as host arrays."""

    train_images: np.ndarray  # [N,28,28] uint8
    train_labels: np.ndarray  # [N] int32
    test_images: np.ndarray
    test_labels: np.ndarray


class Measurement(NamedTuple):
    """A worker's result; compilation ahead of training counts as first epoch time."""

    epoch_seconds: list[float]  # the first epoch, then the steady ones
    test_accuracy: float
    parameters: int
    form: str  # settings that users of the framework would ask about


def peer_config(job: Job) -> TrainConfig:
    """Returns this project's config for a job: Adam with a constant learning rate."""
    network: dict[str, Any] = {"model": f"{_FOLDER / job.model}"}
    if job.model in MODELS:
        network = {"model": job.model, "dropout": (0.0,), **_NETWORKS[job.model]}
    return TrainConfig(
        batch_size=job.batch_size,
        epochs=job.epochs,
        seed=job.seed,
        learning_rate=LEARNING_RATE,
        schedule="constant",
        validation="none",
        **network,
    )


def preprocess(images: np.ndarray) -> np.ndarray:
    """Scales uint8 pixels to float32 in [0, 1]."""
    return images.astype(np.float32) / 255


def time_epochs(train_epoch: Callable[[], None], job: Job) -> list[float]:
    """Returns the seconds per epoch; `train_epoch` must block until it is finished."""
    seconds: list[float] = []
    for _ in range(job.epochs):
        start = time.perf_counter()
        train_epoch()
        seconds.append(time.perf_counter() - start)
        job.end_turn(len(seconds))
    return seconds


def save_arrays(arrays: Arrays, folder: Path) -> None:
    """Saves the arrays, one .npy file each."""
    for name, array in arrays._asdict().items():
        np.save(folder / f"{name}.npy", array)


def load_arrays(folder: str) -> Arrays:
    """Loads the arrays written by `save_arrays`."""
    paths = [f"{folder}/{name}.npy" for name in Arrays._fields]
    return Arrays(*(np.load(path, allow_pickle=False) for path in paths))


def run_worker(
    measure: Callable[[Job, Arrays], Measurement], variants: Sequence[str] = ()
) -> None:
    """Entry point of a worker: runs the job of the flags, prints the result as JSON."""
    cores = os.cpu_count() or 1
    flags.DEFINE_enum("model", "mlp", [*MODELS, *EXAMPLES], "network")
    flags.DEFINE_integer("batch_size", 128, "images per step", lower_bound=1)
    flags.DEFINE_integer("steady_epochs", 2, "epochs after the first", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "seed of the run", lower_bound=0)
    flags.DEFINE_integer("threads", cores, "number of threads", lower_bound=1)
    flags.DEFINE_string("arrays", None, "folder written by save_arrays", required=True)
    flags.DEFINE_boolean("turns", False, "wait after each epoch for a line on stdin")
    if variants:
        flags.DEFINE_enum("variant", variants[0], variants, "variant of the framework")

    try:
        parse_flags(sys.argv)
        job = Job(
            FLAGS.model,
            FLAGS.batch_size,
            FLAGS.steady_epochs,
            FLAGS.seed,
            FLAGS.threads,
            FLAGS.variant if variants else "",
            FLAGS.turns,
        )
        result = measure(job, load_arrays(FLAGS.arrays))._asdict()
    except InputError as error:
        sys.exit(f"error: {error}")
    print(json.dumps({**result, "peak_rss_mb": round(peak_megabytes())}))
