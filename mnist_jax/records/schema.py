"""The records of a run as dataclasses, with JSON encoding and validation."""

import dataclasses
import fcntl
import json
import os
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from absl import logging

from mnist_jax.config import TrainConfig, as_text
from mnist_jax.errors import InputError
from mnist_jax.records.environment import Environment
from mnist_jax.records.files import write_file

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """One epoch: metrics averaged over the images, and wall-clock seconds.

    `loss` and `accuracy` are running means over the epoch's training batches, each
    measured before its update, with dropout; validation is measured after the epoch.
    """

    epoch: int
    loss: float
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    train_seconds: float
    eval_seconds: float


@dataclasses.dataclass(frozen=True)
class RunKey:
    """Everything that decides a run's numbers: equal keys, the same run.

    It is known before training. A run is finished if its directory holds a record with
    the wanted key, and can be resumed from checkpoints with it.
    """

    config: TrainConfig  # with its seed, and the defaults of its dataset
    checksum: str  # of the data
    classes: int
    source_sha256: str | None  # of a custom network's source file
    start_sha256: str | None  # of the parameters of --init_from
    numerics: str  # JAX's settings that change numbers

    def differences(self, before: "RunKey") -> list[str]:
        """Returns in which values a run of this key cannot resume one of another.

        More epochs or a larger patience extend a run.
        """
        new, old = (
            {**vars(key), **{f"--{k}": v for k, v in vars(key.config).items()}}
            for key in (self, before)
        )
        changed = {name for name in new if name != "config" and new[name] != old[name]}
        for name in changed & {"--epochs", "--patience"}:
            if old[name] and new[name] and new[name] > old[name]:
                changed.remove(name)
        return [
            f"{name} was {as_text(old[name])}, is {as_text(new[name])}"
            for name in new
            if name in changed
        ]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One finished run. Seconds are wall-clock; epochs do not include compilation."""

    config: TrainConfig
    dataset: str
    dataset_note: str
    checksum: str
    train_images: int
    validation_images: int
    test_images: int
    parameters: int
    params_sha256: str  # of the trained parameters in `params.msgpack`
    impl: str
    devices: int
    seeds_together: int  # seeds trained by one program; seconds are per seed
    epochs: list[EpochRecord]
    test_loss: float
    test_accuracy: float
    compile_seconds: float  # of the program, for all of its seeds
    compile_cached: bool  # from the compilation cache, or compiled for an earlier run
    first_epoch_seconds: float
    steady_epoch_seconds: float | None  # median of the epochs after the first
    train_images_per_second: float
    step_milliseconds: float
    evaluate_images_per_second: float
    total_seconds: float
    environment: Environment
    system: str | None = None  # published system that the run reproduces, if any
    pixel_mean: float | None = None  # of the training pixels / 255, if standardized
    pixel_std: float | None = None
    source_sha256: str | None = None  # of a custom network's source file
    tta_accuracy: float | None = None  # on the test set, averaged over shifts, if asked
    image_shape: tuple[int, ...] = (28, 28)  # height, width
    classes: int = 10
    class_names: tuple[str, ...] = tuple("0123456789")  # in the order of the labels
    best_epoch: int | None = None  # whose parameters were kept, with `patience`
    start_sha256: str | None = None  # of the parameters it started from, if not random
    float32_convolutions: bool = False  # with precision="bfloat16", of `impl="cpu"`

    def table_key(self) -> tuple[str | int, ...]:
        """Returns the values that must be equal within a table of runs."""
        return self.checksum, self.dataset_note, *self.environment.compared()

    @property
    def key(self) -> RunKey:
        """What decided the run's numbers."""
        return RunKey(
            self.config,
            self.checksum,
            self.classes,
            self.source_sha256,
            self.start_sha256,
            self.environment.numerics,
        )


@dataclasses.dataclass(frozen=True)
class MistakeRecord:
    """A misclassified test image and the confidence of the prediction."""

    index: int  # in the test set
    truth: int
    predicted: int
    probability: float  # of the predicted class
    pixels: str  # base64 of the [H,W] uint8 image, so that plots need no dataset


@dataclasses.dataclass(frozen=True)
class DetailsRecord:
    """Data for plots of a trained network; never used for model selection."""

    confusion: list[list[int]]  # test images by true (row) and predicted (column) class
    worst: list[MistakeRecord]  # misclassified images, most confident first
    filters: list[list[list[float]]] | None  # of a CNN's first layer, [k,k,filters]


def decode(hint: Any, value: Any) -> Any:
    """Converts a value read from JSON to the declared type of a field.

    Args:
        hint: a dataclass, `list[...]`, `tuple[X, ...]`, `dict[str, X]`, `X | None`, or
            a plain type.
        value: value returned by `json.loads`; ValueError if it does not fit.

    >>> decode(tuple[int, ...], [1, 2])
    (1, 2)
    """
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else decode(arguments[0], value)
    if origin in (list, tuple):
        return origin(decode(arguments[0], item) for item in value)
    if origin is dict and arguments:
        return {name: decode(arguments[1], item) for name, item in value.items()}
    if not dataclasses.is_dataclass(hint):
        return value
    hints, cls = typing.get_type_hints(hint), typing.cast(Any, hint)
    try:
        return cls(**{name: decode(hints[name], item) for name, item in value.items()})
    except (AttributeError, KeyError, TypeError) as error:  # other fields or types
        raise ValueError(f"{type(error).__name__}: {error}") from error


def write_json(path: Path, record: Any) -> None:
    """Writes a record as a JSON file atomically."""
    write_file(path, json.dumps(record, default=vars, indent=1) + "\n")


def read_json(cls: type[T], path: Path) -> T:
    """Reads a record written by `write_json`."""
    try:
        return decode(cls, json.loads(path.read_bytes()))
    except ValueError as error:
        raise InputError(
            f"{path} is damaged ({error}); remove it and run again what wrote it"
        ) from error


def json_line(record: Any) -> str:
    """Returns a record or plain values as one line of JSON."""
    return json.dumps(record, default=vars)


def append_jsonl(path: Path, record: Any) -> None:
    """Appends a record as a line of JSON; several processes may append at a time.

    A process killed during its write, or a full disk, leaves a partial line. It is
    kept, and the next line starts on a new one.
    """
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        size = os.fstat(file.fileno()).st_size
        torn = size and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write(b"\n" * bool(torn) + json_line(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_jsonl(cls: type[T], path: Path) -> list[T]:
    """Returns the records of a JSON-lines file, or none if it does not exist.

    Invalid lines are left out with a warning; the file is not changed.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(decode(cls, json.loads(line)))
        except ValueError as error:
            logging.warning("%s line %d is damaged (%s)", path, number, error)
    return records
