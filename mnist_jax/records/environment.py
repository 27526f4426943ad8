"""The machine, the versions and the state of the code that a run is recorded with."""

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

import jax

from mnist_jax.errors import InputError

_PACKAGE = Path(__file__).parents[1]


_COMPARED = {"compared": True}  # fields that all runs of one table share


@dataclasses.dataclass(frozen=True)
class Environment:
    """What it takes to judge timings."""

    device: str = dataclasses.field(metadata=_COMPARED)
    platform: str = dataclasses.field(metadata=_COMPARED)
    cores: int = dataclasses.field(metadata=_COMPARED)
    python: str = dataclasses.field(metadata=_COMPARED)
    jax: str = dataclasses.field(metadata=_COMPARED)
    jaxlib: str = dataclasses.field(metadata=_COMPARED)
    flax: str = dataclasses.field(metadata=_COMPARED)
    optax: str = dataclasses.field(metadata=_COMPARED)
    numpy: str
    xla_flags: str
    commit: str | None  # None outside a git checkout
    dirty: bool | None  # whether the checkout had uncommitted changes
    date: str
    load: float  # average over the last minute

    def compared(self) -> tuple[str | int, ...]:
        """Returns the values that all runs of one table have in common."""
        fields = dataclasses.fields(self)
        return tuple(getattr(self, f.name) for f in fields if "compared" in f.metadata)


def current_environment() -> Environment:
    """Returns the environment of this process, as of now."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    commit = dirty = None
    with contextlib.suppress(InputError):
        commit, dirty = git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    device = jax.devices()[0]
    return Environment(
        device=_cpu_name() if device.platform == "cpu" else device.device_kind,
        platform=device.platform,
        cores=available_cores(),
        python=platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        xla_flags=os.environ.get("XLA_FLAGS", ""),
        commit=commit,
        dirty=dirty,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        load=round(os.getloadavg()[0], 2),
    )


def git(*words: str) -> str:
    """Returns git's answer about this project's checkout.

    Raises:
        InputError: there is no git or no checkout, or git refuses.
    """
    root = _PACKAGE.parent
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


def code_digest(more: Iterable[Path] = ()) -> str:
    """Returns a digest of the package's code, whether committed or not.

    Args:
        more: further files to include.
    """
    digest = hashlib.sha256()
    for file in (*sorted(_PACKAGE.rglob("*.py")), *more):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _cpu_name() -> str:
    """Returns the processor's name, with the numbers that identify its generation."""
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
