"""The records of a run: one dataclass each, decoded and validated in one place."""

import dataclasses
import json
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from absl import logging

from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError
from mnist_jax.records.environment import Environment
from mnist_jax.records.files import append_line, read_lines, write_file

# Version 1 is what has no `schema_version`. A field with a default may be missing.
SCHEMA_VERSION = 3
# The names of fields in earlier versions.
_RENAMED = {"kernels": "impl", "place": "index"}

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class EpochRecord:
    """One epoch: means over the images, seconds of wall-clock.

    `loss` and `accuracy` are running means over the training batches of the epoch, each
    taken before its update, with dropout on; validation is measured after the epoch.
    """

    epoch: int
    loss: float
    accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    train_seconds: float
    eval_seconds: float


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One finished run. Seconds are wall-clock; compiling is apart from the epochs."""

    config: TrainConfig
    dataset: str
    dataset_note: str
    checksum: str
    train_images: int
    validation_images: int
    test_images: int
    parameters: int
    params_sha256: str  # of the trained parameters, as `params.msgpack` holds them
    impl: str
    devices: int
    seeds_together: int  # runs trained by one program; seconds are one's share
    warm_start: bool  # started from another run's parameters
    epochs: list[EpochRecord]
    test_loss: float
    test_accuracy: float
    compile_seconds: float  # of the program, however many seeds it trains
    compile_cached: bool  # the program came from the compilation cache
    first_epoch_seconds: float
    steady_epoch_seconds: float | None  # median of the epochs after the first
    train_images_per_second: float
    step_milliseconds: float
    evaluate_images_per_second: float
    total_seconds: float
    environment: Environment
    system: str | None = None  # the published system that the run is of, if any
    pixel_mean: float | None = None  # of the training pixels / 255, if standardized
    pixel_std: float | None = None
    schema_version: int = SCHEMA_VERSION

    def table_key(self) -> tuple[str | int, ...]:
        """Returns what all runs of one table have in common."""
        return self.checksum, self.dataset_note, *self.environment.compared()

    def run_key(self) -> tuple[Any, ...]:
        """Returns what makes a run the same as another, its seed included."""
        flags = self.environment.xla_flags
        return self.system, self.config, flags, *self.table_key()


@dataclasses.dataclass(frozen=True)
class MistakeRecord:
    """A test image that a network gets wrong, and its confidence in that."""

    index: int  # in the test set
    truth: int
    predicted: int
    probability: float  # of the predicted digit
    pixels: str  # base64 of the [28,28] uint8 image, so that pictures need no data set


@dataclasses.dataclass(frozen=True)
class DetailsRecord:
    """What pictures of a trained network show; never used to choose anything."""

    confusion: list[list[int]]  # test images by truth (row) and prediction (column)
    worst: list[MistakeRecord]  # the most confidently wrong, most confident first
    filters: list[list[list[float]]] | None  # a CNN's first [k,k,filters]
    schema_version: int = SCHEMA_VERSION


def decode(hint: Any, value: Any, name: str = "") -> Any:
    """Returns a value read from JSON as the type that a field is declared to have.

    Args:
        hint: a dataclass, `list[...]`, `tuple[X, ...]`, `X | None`, or a plain type.
        value: what `json.loads` returned.
        name: where it stands within the record, for messages.

    Raises:
        ValueError: a field is missing, unknown or of another type; it is named. For an
            `InputError` of a dataclass's own checks too.

    >>> decode(tuple[int, ...], [1, 2])
    (1, 2)
    >>> decode(TrainConfig, {"colour": 1})
    Traceback (most recent call last):
    ...
    ValueError: has unknown fields colour
    """
    if dataclasses.is_dataclass(hint):
        return _decode_fields(hint, value, name)
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint) or hint
    if isinstance(hint, types.UnionType):
        return None if value is None else decode(arguments[0], value, name)
    if origin in (list, tuple) and isinstance(value, list):
        items = (decode(arguments[0], v, f"{name}[{i}]") for i, v in enumerate(value))
        return origin(items)
    if hint is float:  # JSON has one kind of number; True is none
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    elif hint is int:
        fits = isinstance(value, int) and not isinstance(value, bool)
    else:
        fits = hint is Any or isinstance(value, origin)
    if not fits:
        raise ValueError(f"has no usable {name or 'value'}")
    return value


def _decode_fields(cls: Any, value: Any, name: str) -> Any:
    """Returns a dataclass made of a JSON object; errors as `decode`."""
    if not isinstance(value, dict):
        raise ValueError(f"has no usable {name}" if name else "is no JSON object")
    prefix, hints = f"{name}." if name else "", typing.get_type_hints(cls)
    version = value.get("schema_version", 1)
    if "schema_version" in hints and version != SCHEMA_VERSION:
        if version not in range(1, SCHEMA_VERSION):
            raise ValueError(f"is of version {version}, and {SCHEMA_VERSION} is known")
        value = {**value, "schema_version": SCHEMA_VERSION}
    fields = {field.name: field for field in dataclasses.fields(cls)}
    value = {k if k in fields else _RENAMED.get(k, k): v for k, v in value.items()}
    if unknown := sorted(value.keys() - fields.keys()):
        names = ", ".join(prefix + field for field in unknown)
        raise ValueError(f"has unknown fields {names}")
    missing = [
        prefix + field.name
        for field in fields.values()
        if field.name not in value
        and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}")
    decoded = {key: decode(hints[key], v, prefix + key) for key, v in value.items()}
    try:
        return cls(**decoded)
    except InputError as error:
        raise ValueError(f"has no usable {name or 'value'} ({error})") from error


def plain(record: Any) -> Any:
    """Returns a dataclass as plain values for JSON, and what is none as it is."""
    is_record = dataclasses.is_dataclass(record) and not isinstance(record, type)
    return dataclasses.asdict(record) if is_record else record


def write_json(path: Path, record: Any) -> None:
    """Writes a record as a JSON file, whole or not at all; errors as `write_file`."""
    write_file(path, json.dumps(plain(record), indent=1) + "\n")


def read_json(cls: type[T], path: Path) -> T:
    """Reads the record that `write_json` wrote.

    Raises:
        InputError: there is none, or it is damaged or of another version.
    """
    try:
        return decode(cls, json.loads(path.read_bytes()))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; give the --run_dir of a run that "
            "ended"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); train again") from error
    except ValueError as error:
        raise InputError(
            f"{path} {error}: it is damaged or was written by another version of "
            "mnist_jax; train again or use that version"
        ) from error


def json_line(record: Any) -> str:
    """Returns a record, or plain values, as one line of JSON."""
    return json.dumps(plain(record))


def append_jsonl(path: Path, record: Any) -> None:
    """Appends a record, or plain values, as a line of JSON; errors as `append_line`."""
    append_line(path, json_line(record))


def read_jsonl(cls: type[T], path: Path) -> list[T]:
    """Returns the records of a JSON-lines file; one that is not there has none.

    A line that cannot be used is named in a warning, left out and left as it is.

    Raises:
        InputError: the file cannot be read.
    """
    records = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            records.append(decode_line(cls, line))
        except ValueError as error:
            logging.warning("%s line %d %s and is left out", path, number, error)
    return records


def decode_line(cls: type[T], line: bytes) -> T:
    """Returns the record of a line; raises ValueError as `decode` or if it is torn."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("is damaged") from None
    return decode(cls, value)
