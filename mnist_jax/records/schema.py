"""What is remembered of a run and of the machine, and its form on disk."""

import contextlib
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import operator
import os
import platform
import subprocess
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from mnist_jax.errors import InputError
from mnist_jax.records.files import append_line, read_lines, write_file

Record = Mapping[str, Any]  # a run's record as read from disk

# Runs that differ in one of these are never in one table, let alone in one mean.
PLACE = ("device", "platform", "cores", "python", "jax", "jaxlib", "flax", "optax")


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
    params_sha256: str  # of the trained parameters, as `params.msgpack` holds them
    kernels: str
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


# Fields that tell to which run details belong, as the tables tell runs apart.
_IDENTITY = (
    *("config", "dataset", "dataset_note", "checksum", "kernels", "devices"),
    "environment",
)

# What a reader may rely on: the types of a record's fields, and of those within them.
TYPES: Mapping[str, Any] = {
    **typing.get_type_hints(RunRecord),
    **typing.get_type_hints(DetailsRecord),
    "config.model": str,
    "config.seed": int,
    **{f"environment.{name}": str for name in (*PLACE, "numpy", "xla_flags", "date")},
    "environment.cores": int,
    "environment.load": float,
    "environment.commit": str | None,
    "environment.dirty": bool | None,
}


def with_identity(details: DetailsRecord, record: RunRecord) -> dict[str, Any]:
    """Returns the line of `details.jsonl` that belongs to a run."""
    return {name: getattr(record, name) for name in _IDENTITY} | to_dict(details)


def to_dict(record: RunRecord | EpochRecord | DetailsRecord) -> dict[str, Any]:
    """Returns a record as JSON-ready values."""
    return dataclasses.asdict(record)


def _fits(value: Any, hint: Any) -> bool:
    """Says whether a value read from JSON is what a field of a record is declared."""
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict) and all(
            name in value and _fits(value[name], type)
            for name, type in typing.get_type_hints(hint).items()
        )
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if typing.get_origin(hint) is list:
        return isinstance(value, list) and all(_fits(v, arguments[0]) for v in value)
    if hint in (int, float):  # JSON has one kind of number; True is none
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return isinstance(value, typing.get_origin(hint) or hint)


def git(*words: str) -> str:
    """Returns git's answer about this project's checkout.

    Raises:
        InputError: there is no git or no checkout, or git says no.
    """
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed, perhaps inside somebody's repository
        raise InputError(f"{root} is no git checkout")
    # Without its locks git also leaves the index alone: asking writes nothing at all.
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"git does not answer: {error}") from error
    if answer.returncode:
        reason = ["no message", *answer.stderr.strip().splitlines()][-1]
        raise InputError(f"git {' '.join(words)} failed: {reason}")
    return answer.stdout.strip()


def _cpu_name() -> str:
    """Returns the processor's name, with the numbers that tell its generation."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    words = (line.partition(":") for line in lines)
    found = {name.strip(): value.strip() for name, _, value in words}
    name = found.get("model name") or platform.processor() or platform.machine()
    # A virtual machine may hide the model: "AMD EPYC" alone can be any of five.
    if "cpu family" in found and "model" in found:
        return f"{name} (family {found['cpu family']}, model {found['model']})"
    return name


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
    commit = dirty = None
    with contextlib.suppress(InputError):
        commit, dirty = git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    device = jax.devices()[0]
    return {
        "device": _cpu_name() if device.platform == "cpu" else device.device_kind,
        "platform": device.platform,
        "cores": available_cores(),
        "python": platform.python_version(),
        **versions,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": commit,
        "dirty": dirty,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load": round(os.getloadavg()[0], 2),
    }


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; errors as `write_file`."""
    write_file(path, json.dumps(value, indent=1) + "\n")


def append_jsonl(path: Path, value: Mapping[str, Any]) -> None:
    """Appends one line of JSON; errors as `append_line`."""
    append_line(path, json.dumps(value))


def read_jsonl(
    path: Path, needed: Sequence[str] = (), typed: bool = False
) -> list[dict[str, Any]]:
    """Returns the objects of a JSON-lines file.

    A line that is of no use is named in a warning, left out and left where it is.

    Args:
        path: the file; one that is not there has no lines.
        needed: fields that an object must have, see `missing_fields`.
        typed: whether they must also be of their `TYPES`.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        lines = read_lines(path)
    except FileNotFoundError:
        return []
    values = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            reason = "is damaged"
        elif missing := missing_fields(value, needed):
            reason = f"lacks {', '.join(missing)}"
        elif typed and (damaged := _damaged_fields(value, needed)):
            reason = f"has no usable {', '.join(damaged)}"
        else:
            values.append(value)
            continue
        logging.warning("%s line %d %s and is left out", path, number, reason)
    return values


def missing_fields(record: Record, needed: Sequence[str]) -> list[str]:
    """Returns which of the fields a record lacks; a dot leads into an object.

    >>> missing_fields({"config": {"seed": 0}}, ["config.seed", "config.model"])
    ['config.model']
    """
    return [name for name in needed if not _has(record, name.split("."))]


def _has(value: Any, parts: Sequence[str]) -> bool:
    """Tells whether an object has a field, within objects within it."""
    for part in parts:
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _damaged_fields(record: Record, needed: Sequence[str]) -> list[str]:
    """Returns which of the fields, all there, are not of their type."""

    def value(name: str) -> Any:
        return functools.reduce(operator.getitem, name.split("."), record)

    return [name for name in needed if not _fits(value(name), TYPES[name])]


def place(record: Record) -> str:
    """Returns what all runs of one table have in common, as a text to compare."""
    machine = [record["environment"][name] for name in PLACE]
    return json.dumps([record["checksum"], record["dataset_note"], *machine])
