"""The benchmarked frameworks and the record of a measurement."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mnist_jax.config import MODELS
from mnist_jax.records.environment import Environment

from .worker import EXAMPLES

# glibc returns large freed blocks to the system, so that every step page-faults on them
# again. Making it keep them is what PyTorch's tuning guide recommends another allocator
# for (LSTM, batch 128: 0.8-1.0 s instead of 1.4-1.9 s for 6,000 images).
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}


class Framework(NamedTuple):
    """A row of the table: a framework and its settings."""

    label: str
    worker: str  # its module
    variant: str
    models: Sequence[str] | None = None  # that it has; None: every network
    environment: Mapping[str, str] = {}
    precision: str = "float32"  # rows are compared with rows of the same one

    @property
    def packages(self) -> tuple[str, ...]:
        """The packages that it needs in addition to this project's."""
        packages = {"torch_worker": ("torch",), "keras_worker": ("keras", "tensorflow")}
        return packages.get(self.worker, ())

    @property
    def is_peer(self) -> bool:
        """Whether it can be the fastest peer."""
        return bool(self.packages)


_TORCH = (*MODELS, *EXAMPLES)
OURS = {"float32": "ours", "bfloat16": "ours_bfloat16"}  # by precision
# The networks of PyTorch + malloc are channels_last, but not those of torch.compile,
# which that made slower (CNN: 1.4 s instead of 0.95 s).
FRAMEWORKS = {
    "ours": Framework("ours", "our_worker", "float32"),
    "torch": Framework("PyTorch", "torch_worker", "eager", _TORCH),
    "torch_channels_last": Framework(
        "PyTorch channels_last", "torch_worker", "channels_last", ("cnn", *EXAMPLES)
    ),
    "torch_compile": Framework(
        "PyTorch torch.compile", "torch_worker", "compile", _TORCH
    ),
    "torch_malloc": Framework(
        "PyTorch + malloc", "torch_worker", "channels_last", _TORCH, KEEP_MEMORY
    ),
    "keras_tf": Framework("Keras/TensorFlow", "keras_worker", "tensorflow", MODELS),
    "keras_jax": Framework("Keras/JAX", "keras_worker", "jax", MODELS),
    "flax": Framework("plain Flax", "flax_worker", ""),
    "ours_bfloat16": Framework(
        "ours, bfloat16", "our_worker", "bfloat16", MODELS, precision="bfloat16"
    ),
    "torch_bfloat16": Framework(
        "PyTorch + malloc, bfloat16",
        "torch_worker",
        "bfloat16",
        MODELS,
        KEEP_MEMORY,
        precision="bfloat16",
    ),
}


class Cell(NamedTuple):
    """What a worker trains; each round does so once."""

    framework: str
    model: str
    batch_size: int


PEAK = Cell("matmul", "", 0)  # the peak rate of matrix products


@dataclasses.dataclass(frozen=True)
class Setup:
    """Conditions that must match for measurements to be comparable."""

    code: str  # digest of all timed code
    device: str
    cores: int
    versions: dict[str, str]  # by package
    dataset: str
    checksum: str
    train_images: int  # per epoch; the whole training set or a part of it
    steady_epochs: int  # after the first


@dataclasses.dataclass(frozen=True)
class PeerRecord:
    """The epochs of one worker process in one round."""

    framework: str  # this and the next two fields are those of a cell
    model: str
    batch_size: int
    round: int
    run: Setup
    environment: Environment  # at the start of the program
    date: str
    load: float  # 1-minute load average before the round
    # A worker's `Measurement` and its `peak_rss_mb`, or GFLOP/s by library for PEAK;
    # empty if the worker failed.
    result: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str | None = None

    @property
    def cell(self) -> Cell:
        """What was run."""
        return Cell(self.framework, self.model, self.batch_size)

    @property
    def epoch_seconds(self) -> float:
        """Median seconds of the steady epochs."""
        return statistics.median(self.result["epoch_seconds"][1:])
