"""What is remembered of a run and of the machine, and its form on disk."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from mnist_jax.errors import InputError
from mnist_jax.files import cannot_write, write_file


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

    config: dict[str, Any]
    dataset: str
    dataset_note: str
    checksum: str
    train_images: int
    validation_images: int
    test_images: int
    parameters: int
    kernels: str
    devices: int
    warm_start: bool  # started from another run's parameters
    epochs: list[EpochRecord]
    test_loss: float
    test_accuracy: float
    compile_seconds: float
    first_epoch_seconds: float
    steady_epoch_seconds: float | None  # median of the epochs after the first
    train_images_per_second: float
    step_milliseconds: float
    evaluate_images_per_second: float
    total_seconds: float
    environment: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class MistakeRecord:
    """A test image that a network gets wrong, and how sure it is of that."""

    place: int  # in the test set
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


# What tells to which run a details record belongs, as the tables tell runs apart.
IDENTITY = (
    "config",
    "dataset",
    "dataset_note",
    "checksum",
    "kernels",
    "devices",
    "environment",
)


def with_identity(details: DetailsRecord, record: RunRecord) -> dict[str, Any]:
    """Returns the line of `details.jsonl` that belongs to a run."""
    return {name: getattr(record, name) for name in IDENTITY} | to_dict(details)


def to_dict(record: RunRecord | EpochRecord | DetailsRecord) -> dict[str, Any]:
    """Returns a record as JSON-ready values."""
    return dataclasses.asdict(record)


def _fits(value: Any, hint: Any) -> bool:
    """Says whether a value read from JSON is what a field of a record is declared."""
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict) and not _misfits(
            value, typing.get_type_hints(hint)
        )
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if typing.get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(v, arguments[0]) for v in value)
    if hint in (int, float):  # JSON has one kind of number; True is none
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return isinstance(value, typing.get_origin(hint) or hint)


def _misfits(values: Mapping[str, Any], hints: Mapping[str, Any]) -> list[str]:
    """Returns the names of fields that are missing or of another type."""
    return [
        name
        for name, hint in hints.items()
        if name not in values or not _fits(values[name], hint)
    ]


def _git(*arguments: str) -> str | None:
    """Asks git about this project's checkout; None where this is none."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():  # installed, perhaps inside somebody's repository
        return None
    command = ["git", "-C", str(root), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _cpu_name() -> str:
    """Returns the processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip()
            for line in lines
            if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def available_cores() -> int:
    """Counts the cores this process may use: its affinity, and a container's quota."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no quota, or it reads "max"
    return cores


def environment() -> dict[str, Any]:
    """Returns what it takes to judge timings: machine, versions, state of the code."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    status = _git("status", "--porcelain")
    device = jax.devices()[0]
    return {
        "device": _cpu_name() if device.platform == "cpu" else device.device_kind,
        "platform": device.platform,
        "cores": available_cores(),
        "python": platform.python_version(),
        **versions,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 2),
    }


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; errors as `write_file`."""
    write_file(path, json.dumps(value, indent=1) + "\n")


def append_jsonl(path: Path, value: Mapping[str, Any]) -> None:
    """Appends one line of JSON, in one write, so that lines of processes don't mix."""
    line = (json.dumps(value) + "\n").encode()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise cannot_write(path, error) from error


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSON-lines file.

    Raises:
        InputError: the file cannot be read, or a line is no JSON object.
    """
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            value = None
        if not isinstance(value, dict):
            raise InputError(
                f"{path} line {number} is not a JSON object; remove the line, which is "
                "damaged, and run again"
            )
        yield value


# What every record says of its config and of the machine.
_PARTS: Mapping[str, Mapping[str, Any]] = {
    "config": {"model": str, "seed": int},
    "environment": {
        **dict.fromkeys(("device", "platform", "xla_flags", "date"), str),
        **dict.fromkeys(("python", "jax", "jaxlib", "flax", "optax", "numpy"), str),
        "cores": int,
        "load": float,
        "commit": str | None,
        "dirty": bool | None,
    },
}


def read_records(
    path: Path, kind: type[RunRecord] | type[DetailsRecord], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns the records of a JSON-lines file, each with all that a reader needs.

    Args:
        path: what `append_jsonl` wrote.
        kind: whose declaration says what type a field has.
        names: the fields that must be there, `config` and `environment` among them.

    Raises:
        InputError: the file cannot be read or a line is damaged; or a field is missing
            or of another type, which is then named.
    """
    hints = typing.get_type_hints(RunRecord) | typing.get_type_hints(kind)
    records = list(read_jsonl(path))
    for number, record in enumerate(records, start=1):
        bad = _misfits(record, {name: hints[name] for name in names})
        for whole in _PARTS.keys() - set(bad):
            misfits = _misfits(record[whole], _PARTS[whole])
            bad += [f"{whole}.{name}" for name in misfits]
        if bad:
            raise InputError(
                f"{path} line {number} is no record of a finished run: missing or "
                f"damaged {', '.join(bad)}; remove the line and run again"
            )
    return records
