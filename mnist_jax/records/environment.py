"""The machine, package versions and code state recorded with each run."""

import contextlib
import dataclasses
import datetime
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from mnist_jax.errors import InputError

_PACKAGE = Path(__file__).parents[1]
# JAX's settings that change numbers, and their defaults. Some versions lack some.
_NUMERICS: dict[str, Any] = {
    "jax_accurate_erf_inv": False,
    "jax_allow_f16_reductions": True,
    "jax_default_matmul_precision": None,
    "jax_default_prng_impl": "threefry2x32",
    "jax_enable_x64": False,
    "jax_optimization_level": "UNKNOWN",
    "jax_random_seed_offset": 0,
    "jax_softmax_custom_jvp": False,
    "jax_threefry_partitionable": True,
    "jax_use_hlo_logistic_lowering": None,
}
# Variables of the libraries behind GPUs and TPUs that change numbers.
_NUMERICS_VARIABLES = ("NVIDIA_TF32_OVERRIDE", "LIBTPU_INIT_ARGS")


@dataclasses.dataclass(frozen=True)
class Environment:
    """The conditions a run was timed under."""

    device: str
    platform: str
    cores: int
    python: str
    jax: str
    jaxlib: str
    flax: str
    optax: str
    numpy: str
    xla_flags: str
    commit: str | None  # None outside a git checkout
    dirty: bool | None  # whether tracked files had uncommitted changes
    date: str
    load: float  # one-minute load average
    numerics: str = ""  # see `numerics`

    def compared(self) -> tuple[str | int, ...]:
        """Returns the values that must be equal within a table of runs."""
        others = ("numpy", "commit", "dirty", "date", "load")
        return tuple(v for name, v in vars(self).items() if name not in others)


def numerics() -> str:
    """Returns the settings that change numbers and do not have their defaults.

    >>> numerics()
    ''
    >>> with jax.enable_x64(True), jax.default_matmul_precision("highest"):
    ...     numerics()
    'jax_default_matmul_precision=highest jax_enable_x64=True'
    """
    settings = {
        name: value
        for name, default in _NUMERICS.items()
        if (value := getattr(jax.config, name, default)) != default
    }
    for name in _NUMERICS_VARIABLES:
        if value := os.environ.get(name):
            settings[name] = value
    return " ".join(f"{name}={value}" for name, value in settings.items())


def current_environment() -> Environment:
    """Returns the current environment of this process."""
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    commit = dirty = None
    if (_PACKAGE.parent / ".git").exists():  # not installed
        with contextlib.suppress(OSError, InputError):
            commit = git("rev-parse", "HEAD")
            # Untracked files, such as results, do not change what the commit computes.
            dirty = bool(git("status", "--porcelain", "--untracked-files=no"))
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
        # Records are sorted by it, and a second is enough for several small runs.
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        load=round(os.getloadavg()[0], 2),
        numerics=numerics(),
    )


def check_packages(purpose: str, packages: Sequence[str], extra: str) -> None:
    """Checks that the packages of an optional dependency `extra` are installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{purpose} needs {' and '.join(missing)}, not installed here; run "
            f"`pip install '.[{extra}]'`"
        )


def git(*words: str) -> str:
    """Returns the output of a git command in this project's checkout."""
    # Without optional locks git does not refresh the index, so nothing is written.
    command = ["git", "--no-optional-locks", "-C", str(_PACKAGE.parent), *words]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise InputError(f"{' '.join(command)} failed: {result.stderr.strip()}")
    return result.stdout.strip()


def code_digest(more: Iterable[Path] = ()) -> str:
    """Returns a digest of the package's source, committed or not, and more files."""
    digest = hashlib.sha256()
    for file in (*sorted(_PACKAGE.rglob("*.py")), *more):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def cpu_info() -> dict[str, str]:
    """Returns the fields of one core in /proc/cpuinfo; none without that file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    fields = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in fields}


def _cpu_name() -> str:
    """Returns the CPU's name, with the numbers that identify its generation."""
    found = cpu_info()
    name = found.get("model name") or platform.processor() or platform.machine()
    # A virtual machine may hide the model: "AMD EPYC" alone could be any of five.
    if "cpu family" in found and "model" in found:
        return f"{name} (family {found['cpu family']}, model {found['model']})"
    return name


def available_cores() -> int:
    """Returns the number of cores allowed by CPU affinity and container quota."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # no quota, or it reads "max"
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores
