"""Shared code of the `benchmarks.peers` workers: job, data, timing and result.

A worker trains one network with one framework in a separate process and prints one line
of JSON. This module imports no framework, so that none adds to another's memory.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import DIGITS, Dataset, Split
from mnist_jax.profiling.hardware import peak_megabytes

FLAGS = flags.FLAGS

LEARNING_RATE = 1e-3
# The networks of the presets av_dnn, av_lstm (with tanh, without dropout) and ml10_cnn.
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": dict(hidden=(128, 128)),
    "lstm": dict(lstm_units=(128, 128), activation="tanh", hidden=(32,)),
    "cnn": dict(conv=("32:pool2", "64:pool2", "64"), hidden=(64,)),
}
# Networks as users write them, in the checkout's folder `examples/`.
EXAMPLES = tuple(
    "examples/lenet.py:LeNet examples/vgg.py:VGG examples/resnet.py:ResNet "
    "examples/mobilenet.py:MobileNet examples/convnext.py:ConvNeXt "
    "examples/dilated.py:Dilated examples/unet.py:UNet examples/nnx_cnn.py:CNN "
    "examples/mixer.py:Mixer examples/vit.py:ViT examples/lstm.py:LSTM "
    "examples/gru.py:GRU".split()
)


@dataclasses.dataclass(frozen=True)
class Job:
    """What to train, and for how many epochs; each field is a flag of a worker."""

    model: str = "mlp"  # one of MODELS or EXAMPLES, or another path/to/file.py:Class
    batch_size: int = 128
    steady_epochs: int = 2  # after the first
    seed: int = 0
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
        return TrainConfig(
            model=self.model,
            batch_size=self.batch_size,
            epochs=self.epochs,
            seed=self.seed,
            learning_rate=LEARNING_RATE,
            schedule="constant",
            validation="none",
            **NETWORKS.get(self.model, {}),
        )

    def end_turn(self, epochs_done: int) -> None:
        """Lets the other workers train, until a line on stdin gives the next turn."""
        if self.turns and epochs_done < self.epochs:
            print(json.dumps({"epoch": epochs_done}), flush=True)
            sys.stdin.readline()


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A worker's result; compilation ahead of training counts as first epoch time."""

    epoch_seconds: list[float]  # the first epoch, then the steady ones
    test_accuracy: float
    parameters: int
    peak_rss_mb: int = field(default_factory=lambda: round(peak_megabytes()))


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


def save_arrays(dataset: Dataset, folder: Path) -> None:
    """Saves the splits of a dataset, one .npy file for each array."""
    for name, split in dataset.splits().items():
        np.save(folder / f"{name}_images.npy", split.images)
        np.save(folder / f"{name}_labels.npy", split.labels)


def _load_split(name: str, size: int | None = None) -> Split:
    """Returns the first images of a split that `save_arrays` saved, by default all."""
    images = np.load(f"{FLAGS.arrays}/{name}_images.npy")
    labels = np.load(f"{FLAGS.arrays}/{name}_labels.npy")
    return Split(images[:size], labels[:size])


def run_worker(measure: Callable[[Job, Dataset], Measurement]) -> None:
    """Entry point of a worker: runs the job of the flags, prints the result as JSON."""
    define: dict[type, Callable[..., object]] = {
        str: flags.DEFINE_string,
        int: flags.DEFINE_integer,
        bool: flags.DEFINE_boolean,
    }
    defaults = vars(Job())
    for name, default in defaults.items():
        define[type(default)](name, default, "field of the job")
    flags.DEFINE_string("arrays", None, "folder written by save_arrays", required=True)
    FLAGS(sys.argv)
    fields: dict[str, Any] = {name: FLAGS[name].value for name in defaults}
    job = Job(**fields)
    train = _load_split("train", job.train_images or None)
    dataset = Dataset(train, _load_split("test"), class_names=DIGITS, name="arrays")
    print(json.dumps(vars(measure(job, dataset))))
