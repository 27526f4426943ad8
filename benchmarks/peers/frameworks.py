"""The frameworks that are timed side by side, and the record of a measurement."""

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

from mnist_jax.config import MODELS
from mnist_jax.records.environment import Environment
from mnist_jax.records.schema import SCHEMA_VERSION

# glibc returns large blocks to the system when they are freed and takes page faults for
# them again in each step. PyTorch's tuning guide proposes another allocator against
# that; keeping the blocks serves the same end with nothing to install (LSTM, batch 128:
# 0.8-1.0 s against 1.4-1.9 s for 6,000 images; CNN, batch 32: no gain). Keras's LSTMs
# gained too (2.1-2.8 s to 1.5-1.8 s) but stayed slower, so they have no such row.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}


class Framework(NamedTuple):
    """A framework in one of its variants: a row of the table."""

    label: str
    module: str
    variants: Mapping[str, str]  # by model; a model that is not in it has no such row
    packages: tuple[str, ...] = ()  # beyond this project's requirements
    is_peer: bool = True  # counts for the ratio
    environment: Mapping[str, str] = {}


def _all(variant: str) -> dict[str, str]:
    return dict.fromkeys(MODELS, variant)


OURS = "ours"
FRAMEWORKS = {
    OURS: Framework("ours", "our_worker", _all(""), is_peer=False),
    "torch": Framework("PyTorch", "torch_worker", _all("eager"), ("torch",)),
    "torch_channels_last": Framework(
        "PyTorch channels_last", "torch_worker", {"cnn": "channels_last"}, ("torch",)
    ),
    # Channels first: channels_last was slower when compiled (1.4 s against 0.95 s).
    "torch_compile": Framework(
        "PyTorch torch.compile", "torch_worker", _all("compile"), ("torch",)
    ),
    "torch_malloc": Framework(
        "PyTorch + malloc",
        "torch_worker",
        {**_all("eager"), "cnn": "channels_last"},
        ("torch",),
        environment=_KEEP_MEMORY,
    ),
    "keras_tf": Framework(
        "Keras/TensorFlow", "keras_worker", _all("tensorflow"), ("keras", "tensorflow")
    ),
    "keras_jax": Framework("Keras/JAX", "keras_worker", _all("jax"), ("keras",)),
    "flax": Framework("plain Flax", "flax_worker", _all(""), is_peer=False),
}
PEAK = "matmul"  # the name under which the machine's peak is recorded


class Cell(NamedTuple):
    """One measurement of a round."""

    framework: str
    model: str
    batch_size: int


PEAK_CELL = Cell(PEAK, "", 0)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What must be equal for measurements to be compared."""

    code: str  # digest of all code that is timed
    device: str
    cores: int
    versions: dict[str, str]  # by package
    dataset: str
    checksum: str
    train_images: int
    steady_epochs: int  # after the first


@dataclasses.dataclass(frozen=True)
class PeerRecord:
    """One measurement, in a process of its own."""

    framework: str  # one of FRAMEWORKS, or PEAK
    model: str  # empty for PEAK
    batch_size: int  # 0 for PEAK
    round: int
    run: Setup
    environment: Environment  # at the start of the program
    date: str
    load: float  # average over the minute before
    wall_seconds: float  # of the whole process
    others_cores: float  # mean number of cores that other programs used meanwhile
    disturbed: bool  # whether that was too much for the measurement to count
    # A worker's `Measurement` and its `peak_rss_mb`, or GFLOP/s by library for PEAK;
    # empty if the worker failed.
    result: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str | None = None
    schema_version: int = SCHEMA_VERSION

    @property
    def cell(self) -> Cell:
        """Which measurement it is."""
        return Cell(self.framework, self.model, self.batch_size)

    @property
    def is_valid(self) -> bool:
        """Whether the measurement finished undisturbed."""
        return bool(self.result) and not self.disturbed

    @property
    def epoch_seconds(self) -> float:
        """Median of the steady epochs."""
        return statistics.median(self.result["epoch_seconds"][1:])
