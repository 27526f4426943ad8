"""The records of a run as dataclasses, with JSON encoding and validation."""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from absl import logging

from mnist_jax.config import TrainConfig, as_text
from mnist_jax.errors import InputError
from mnist_jax.records.environment import Environment
from mnist_jax.records.files import append_line, read_lines, write_file

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


def _part(label: str) -> Any:
    """Declares a field of `RunKey` with its name in messages."""
    return dataclasses.field(metadata={"label": label})


@dataclasses.dataclass(frozen=True)
class RunKey:
    """Everything that decides a run's numbers: equal keys, the same run.

    It is known before training. A run is finished if its directory holds a record with
    the wanted key, and can be resumed from checkpoints with it. Each field besides the
    config is one of `RunRecord` too.
    """

    config: TrainConfig  # with its seed, and the defaults of its dataset
    checksum: str = _part("the sha256 of the data")
    classes: int = _part("the number of classes")
    source_sha256: str | None = _part("the sha256 of the network's source")
    start_sha256: str | None = _part("the sha256 of the parameters of --init_from")
    numerics: str = _part("the settings of JAX that change numbers")

    def differences(self, before: "RunKey") -> list[str]:
        """Returns in which values a run of this key cannot resume one of another.

        More epochs or a larger patience extend a run.
        """
        values = {
            f"--{name}": (old, getattr(self.config, name))
            for name, old in vars(before.config).items()
        }
        for field in dataclasses.fields(self)[1:]:
            pair = getattr(before, field.name), getattr(self, field.name)
            values[field.metadata["label"]] = pair
        return [
            f"{label} was {as_text(old)}, is {as_text(new)}"
            for label, (old, new) in values.items()
            if new != old
            and not (label in ("--epochs", "--patience") and old and new and new > old)
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
    class_names: tuple[str, ...] = ()  # of the user's data, if they have names
    best_epoch: int | None = None  # whose parameters were kept, with `patience`
    start_sha256: str | None = None  # of the parameters it started from, if not random
    float32_convolutions: bool = False  # with precision="bfloat16", of `impl="cpu"`

    def table_key(self) -> tuple[str | int, ...]:
        """Returns the values that must be equal within a table of runs."""
        return self.checksum, self.dataset_note, *self.environment.compared()

    @property
    def numerics(self) -> str:
        """The settings of JAX that change numbers."""
        return self.environment.numerics

    @property
    def key(self) -> RunKey:
        """What decided the run's numbers."""
        fields = dataclasses.fields(RunKey)
        return RunKey(**{field.name: getattr(self, field.name) for field in fields})

    def timing_key(self) -> tuple[Any, ...]:
        """Returns the values that identify a run and the machine that timed it."""
        return self.system, self.key, *self.table_key()


@dataclasses.dataclass(frozen=True)
class MistakeRecord:
    """A misclassified test image and the confidence of the prediction."""

    index: int  # in the test set
    truth: int
    predicted: int
    probability: float  # of the predicted digit
    pixels: str  # base64 of the [H,W] uint8 image, so that plots need no dataset


@dataclasses.dataclass(frozen=True)
class DetailsRecord:
    """Data for plots of a trained network; never used for model selection."""

    confusion: list[list[int]]  # test images by true (row) and predicted (column) digit
    worst: list[MistakeRecord]  # misclassified images, most confident first
    filters: list[list[list[float]]] | None  # of a CNN's first layer, [k,k,filters]
    class_names: tuple[str, ...] = ()  # as in `RunRecord`


def decode(hint: Any, value: Any) -> Any:
    """Converts a value read from JSON to the declared type of a field.

    Args:
        hint: a dataclass, `list[...]`, `tuple[X, ...]`, `dict[str, X]`, `X | None`, or
            a plain type.
        value: value returned by `json.loads`.

    Raises:
        ValueError: the value does not fit; the message names the field.

    >>> decode(tuple[int, ...], [1, 2])
    (1, 2)
    >>> decode(TrainConfig, {"epochs": "two"})
    Traceback (most recent call last):
    ...
    ValueError: epochs: 'two' is not of type int
    """
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is types.UnionType:
        return None if value is None else decode(arguments[0], value)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        hints, cls = typing.get_type_hints(hint), typing.cast(Any, hint)
        try:
            return cls(**{k: _decode(k, hints.get(k), v) for k, v in value.items()})
        except (TypeError, InputError) as error:  # a field is missing, or its value bad
            raise ValueError(str(error)) from error
    if origin in (list, tuple) and isinstance(value, list):
        return origin(_decode(f"[{i}]", arguments[0], v) for i, v in enumerate(value))
    if origin is dict and arguments and isinstance(value, dict):
        return {k: _decode(k, arguments[1], v) for k, v in value.items()}
    kinds: Any = {float: (float, int), Any: object}.get(origin, origin)
    misfit = isinstance(value, bool) and origin in (int, float)  # True is an int
    if misfit or not isinstance(value, kinds):
        raise ValueError(f"{value!r:.40} is not of type {origin.__name__}")
    return value


def _decode(name: str, hint: Any, value: Any) -> Any:
    """Decodes the value of a field or an item; the message of an error names it."""
    if hint is None:
        raise ValueError(f"unknown field {name}")
    try:
        return decode(hint, value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def plain(record: Any) -> Any:
    """Converts a dataclass to plain values for JSON; returns other values unchanged."""
    is_record = dataclasses.is_dataclass(record) and not isinstance(record, type)
    return dataclasses.asdict(record) if is_record else record


def write_json(path: Path, record: Any) -> None:
    """Writes a record as a JSON file atomically."""
    write_file(path, json.dumps(plain(record), indent=1) + "\n")


def read_json(cls: type[T], path: Path, remedy: str = "train again") -> T:
    """Reads a record written by `write_json`.

    Args:
        cls: its dataclass.
        path: the file.
        remedy: what to do if it is damaged, for the error message.
    """
    try:
        return decode(cls, json.loads(path.read_bytes()))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; give the --run_dir of a finished "
            "run"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); {remedy}") from error


def json_line(record: Any) -> str:
    """Returns a record or plain values as one line of JSON."""
    return json.dumps(plain(record))


def append_jsonl(path: Path, record: Any) -> None:
    """Appends a record or plain values as a line of JSON."""
    append_line(path, json_line(record))


def read_jsonl(cls: type[T], path: Path) -> list[T]:
    """Returns the records of a JSON-lines file, or none if it does not exist.

    Invalid lines are left out with a warning; the file is not changed.
    """
    records = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            records.append(decode(cls, json.loads(line)))
        except ValueError as error:
            logging.warning(
                "%s line %d is damaged (%s) and left out", path, number, error
            )
    return records
