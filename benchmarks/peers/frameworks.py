"""The benchmarked frameworks, what they race with, and the record of a measurement."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mnist_jax.config import MODELS
from mnist_jax.records.environment import Environment

from .worker import EXAMPLES, Measurement

# glibc returns large freed blocks to the system, so that every step page-faults on them
# again. Making it keep them is what PyTorch's tuning guide recommends another allocator
# for (LSTM, batch 128: 0.8-1.0 s instead of 1.4-1.9 s for 6,000 images).
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}

# The packages that the workers of the peers need in addition to this project's.
PACKAGES = {"torch": ("torch",), "keras": ("keras", "tensorflow")}


class Framework(NamedTuple):
    """A row of the table: a framework and its settings."""

    label: str
    worker: str  # its module, without "_worker"
    variant: str
    models: Sequence[str] | None = None  # that it has; None: every network
    environment: Mapping[str, str] = {}


_TORCH = (*MODELS, *EXAMPLES)
# The networks of PyTorch + malloc are channels_last, but not those of torch.compile,
# which that made slower (CNN: 1.4 s instead of 0.95 s).
FRAMEWORKS = {
    "ours": Framework("ours", "our", "float32"),
    "torch": Framework("PyTorch", "torch", "eager", _TORCH),
    "torch_channels_last": Framework(
        "PyTorch channels_last", "torch", "channels_last", ("cnn", *EXAMPLES)
    ),
    "torch_compile": Framework("PyTorch torch.compile", "torch", "compile", _TORCH),
    "torch_malloc": Framework(
        "PyTorch + malloc", "torch", "channels_last", _TORCH, KEEP_MEMORY
    ),
    "keras_tf": Framework("Keras/TensorFlow", "keras", "tensorflow", MODELS),
    "keras_jax": Framework("Keras/JAX", "keras", "jax", MODELS),
    "flax": Framework("plain Flax", "flax", ""),
    "ours_bfloat16": Framework("ours, bfloat16", "our", "bfloat16", MODELS),
    "torch_bfloat16": Framework(
        "PyTorch + malloc, bfloat16", "torch", "bfloat16", MODELS, KEEP_MEMORY
    ),
}


@dataclasses.dataclass(frozen=True)
class Race:
    """What frameworks train in turns; times of equal races can be compared."""

    model: str
    batch_size: int
    train_images: int  # per epoch; the whole training set or its first images
    steady_epochs: int  # after the first
    dataset: str
    checksum: str
    code: str  # digest of the timed code besides a custom network
    packages: str  # versions of the peers
    source_sha256: str | None = None  # of a custom network's source file


@dataclasses.dataclass(frozen=True)
class PeerRecord:
    """The epochs of one worker process in one round of a race."""

    race: Race
    framework: str
    round: int
    environment: Environment  # before its turns
    result: Measurement

    def table_key(self) -> tuple[str | int, ...]:
        """Returns the values that must be equal within a table."""
        return self.race.code, self.race.packages, *self.environment.compared()

    @property
    def steady_seconds(self) -> list[float]:
        """Seconds of the epochs after the first."""
        return self.result.epoch_seconds[1:]
