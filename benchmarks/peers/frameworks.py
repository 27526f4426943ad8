"""The benchmarked frameworks and the record of a measurement."""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from mnist_jax.config import MODELS
from mnist_jax.records.environment import Environment

from .worker import EXAMPLES

# glibc returns large freed blocks to the system, so that every step page-faults on them
# again. PyTorch's tuning guide recommends another allocator; making glibc keep the
# blocks has the same effect with nothing to install (LSTM, batch 128: 0.8-1.0 s instead
# of 1.4-1.9 s for 6,000 images; CNN, batch 32: no gain). Keras's LSTMs improved too
# (2.1-2.8 s to 1.5-1.8 s) but stayed slower, so they have no such row.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}


class Framework(NamedTuple):
    """A row of the table: a framework and its settings."""

    label: str
    module: str
    variants: Mapping[str, str]  # by model; other models have no such row
    packages: tuple[str, ...] = ()  # in addition to this project's requirements
    is_peer: bool = True  # whether it can be the fastest peer
    environment: Mapping[str, str] = {}
    precision: str = "float32"  # rows are compared with rows of the same one


def _all(variant: str) -> dict[str, str]:
    return dict.fromkeys((*MODELS, *EXAMPLES), variant)


def _ours(variant: str) -> dict[str, str]:
    return dict.fromkeys(MODELS, variant)


OURS = {"float32": "ours", "bfloat16": "ours_bfloat16"}  # by precision
FRAMEWORKS = {
    "ours": Framework("ours", "our_worker", _all("float32"), is_peer=False),
    "torch": Framework("PyTorch", "torch_worker", _all("eager"), ("torch",)),
    "torch_channels_last": Framework(
        "PyTorch channels_last",
        "torch_worker",
        dict.fromkeys(("cnn", *EXAMPLES), "channels_last"),
        ("torch",),
    ),
    # Channels first: channels_last was slower when compiled (1.4 s instead of 0.95 s).
    "torch_compile": Framework(
        "PyTorch torch.compile", "torch_worker", _all("compile"), ("torch",)
    ),
    "torch_malloc": Framework(
        "PyTorch + malloc",
        "torch_worker",
        {**_ours("eager"), **dict.fromkeys(("cnn", *EXAMPLES), "channels_last")},
        ("torch",),
        environment=KEEP_MEMORY,
    ),
    "keras_tf": Framework(
        "Keras/TensorFlow", "keras_worker", _ours("tensorflow"), ("keras", "tensorflow")
    ),
    "keras_jax": Framework("Keras/JAX", "keras_worker", _ours("jax"), ("keras",)),
    "flax": Framework("plain Flax", "flax_worker", _all(""), is_peer=False),
    "ours_bfloat16": Framework(
        "ours, bfloat16",
        "our_worker",
        _ours("bfloat16"),
        is_peer=False,
        precision="bfloat16",
    ),
    "torch_bfloat16": Framework(
        "PyTorch + malloc, bfloat16",
        "torch_worker",
        _ours("bfloat16"),
        ("torch",),
        environment=KEEP_MEMORY,
        precision="bfloat16",
    ),
}
PEAK = "matmul"  # recorded as the framework of the matmul peak


class Cell(NamedTuple):
    """What a worker trains; each round does so once."""

    framework: str
    model: str
    batch_size: int


PEAK_CELL = Cell(PEAK, "", 0)


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

    framework: str  # one of FRAMEWORKS, or PEAK
    model: str  # empty for PEAK
    batch_size: int  # 0 for PEAK
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
