"""Shared code of the `benchmarks.peers` workers: job, data, timing and result.

A worker trains one network with one framework in a separate process and prints one line
of JSON. This module imports no framework, so that none adds to another's memory.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from mnist_jax.config import MODELS, TrainConfig
from mnist_jax.profiling.memory import peak_megabytes

FLAGS = flags.FLAGS

LEARNING_RATE = 1e-3
# The networks of the presets av_dnn, av_lstm (with tanh, without dropout) and ml10_cnn.
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": dict(hidden=(128, 128)),
    "lstm": dict(lstm_units=(128, 128), activation="tanh", hidden=(32,)),
    "cnn": dict(conv=("32:pool2", "64:pool2", "64"), hidden=(64,)),
}
# Networks as users write them, in `examples/`.
EXAMPLES = tuple(
    "lenet.py:LeNet vgg.py:VGG resnet.py:ResNet mobilenet.py:MobileNet "
    "convnext.py:ConvNeXt dilated.py:Dilated unet.py:UNet nnx_cnn.py:CNN "
    "mixer.py:Mixer vit.py:ViT lstm.py:LSTM gru.py:GRU".split()
)
_FOLDER = Path(__file__).parents[2] / "examples"


@dataclasses.dataclass(frozen=True)
class Job:
    """What to train, and for how many epochs; each field is a flag of a worker."""

    model: str = "mlp"  # one of MODELS or EXAMPLES, or another path/to/file.py:Class
    batch_size: int = 128
    steady_epochs: int = 2  # after the first
    seed: int = 0
    threads: int = 1
    variant: str = ""  # of the framework, if it has several
    train_images: int = 0  # the first ones of the arrays; 0: all
    turns: bool = False  # whether to wait after each epoch for a line on stdin

    @property
    def epochs(self) -> int:
        """The number of epochs, including the first."""
        return 1 + self.steady_epochs

    @property
    def config(self) -> TrainConfig:
        """This project's config: Adam with a constant learning rate."""
        network: dict[str, Any] = {"model": self.model}
        if self.model in MODELS:
            network |= {"dropout": (0.0,), **NETWORKS[self.model]}
        elif self.model in EXAMPLES:
            network = {"model": f"{_FOLDER / self.model}"}
        return TrainConfig(
            batch_size=self.batch_size,
            epochs=self.epochs,
            seed=self.seed,
            learning_rate=LEARNING_RATE,
            schedule="constant",
            validation="none",
            **network,
        )

    def end_turn(self, epochs_done: int) -> None:
        """Lets the other workers train, until a line on stdin gives the next turn."""
        if self.turns and epochs_done < self.epochs:
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


def run_worker(measure: Callable[[Job, Arrays], Measurement]) -> None:
    """Entry point of a worker: runs the job of the flags, prints the result as JSON."""
    define: dict[type, Callable[..., object]] = {
        str: flags.DEFINE_string,
        int: flags.DEFINE_integer,
        bool: flags.DEFINE_boolean,
    }
    names = dataclasses.asdict(Job())
    for name, default in names.items():
        define[type(default)](name, default, "field of the job")
    flags.DEFINE_string("arrays", None, "folder written by save_arrays", required=True)
    FLAGS(sys.argv)
    fields: dict[str, Any] = {name: FLAGS[name].value for name in names}
    job = Job(**fields)
    paths = [f"{FLAGS.arrays}/{name}.npy" for name in Arrays._fields]
    images, labels, *test = map(np.load, paths)
    size = job.train_images or len(labels)
    result = measure(job, Arrays(images[:size], labels[:size], *test))
    memory = {"peak_rss_mb": round(peak_megabytes())}
    print(json.dumps({**result._asdict(), **memory}))
