"""The compilation cache on disk, and a timer that reports whether it was used."""

import hashlib
import os
import platform
import re
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jaxlib
from absl import logging

from mnist_jax.data.array_cache import cache_dir
from mnist_jax.errors import InputError
from mnist_jax.records.environment import cpu_info
from mnist_jax.training import cluster

_HIT = "/jax/compilation_cache/cache_hits"
_REQUEST = "/jax/compilation_cache/compile_requests_use_cache"


def compile_cache_dir() -> Path:
    """Returns the folder for programs compiled by this jaxlib on this type of CPU.

    XLA compiles for the exact instruction set of the CPU; a program compiled on another
    type may crash.
    """
    found = cpu_info() or {"flags": platform.processor() or platform.machine()}
    processor = [found.get(name) for name in ("model name", "flags", "Features")]
    digest = hashlib.sha256(str(processor).encode()).hexdigest()[:12]
    name = f"jaxlib-{jaxlib.__version__}-{digest}"
    # A job's programs name the devices of their process.
    if cluster.processes() > 1:
        name += f"-process{cluster.process()}of{cluster.processes()}"
    return cache_dir() / "compiled" / name


def use_compile_cache() -> None:
    """Enables JAX's persistent compilation cache for all programs.

    It is in JAX_COMPILATION_CACHE_DIR, if JAX has been given one, and JAX's variables
    for what is kept there apply.

    Raises:
        InputError: the folder's name is not UTF-8 text, with which JAX cannot compile.
    """
    chosen = jax.config.values["jax_compilation_cache_dir"]
    folder = str(Path(chosen or compile_cache_dir()).expanduser())
    try:
        folder.encode()
    except UnicodeEncodeError:
        variable = "JAX_COMPILATION_CACHE_DIR" if chosen else "MNIST_JAX_CACHE_DIR"
        raise InputError(
            f"the folder for compiled programs, {folder}, is not UTF-8 text; set "
            f"{variable} to another, or give --compile_cache=off"
        ) from None
    jax.config.update("jax_compilation_cache_dir", folder)
    _warn_once_of(folder)
    settings = {
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        if not os.environ.get(name.upper()):
            jax.config.update(name, value)


def _warn_once_of(folder: str) -> None:
    """Replaces JAX's warnings, one for each program, of a cache that is not usable."""
    show: Any = warnings.showwarning
    told: list[str] = []

    def showwarning(message: Any, *details: Any, **more: Any) -> None:
        fault = re.match(r"Error (reading|writing) persistent.*?: (.*)", str(message))
        if not fault:
            show(message, *details, **more)
        elif not told:
            told.append(fault[2])
            logging.warning(
                "%s the compiled programs in %s failed (%s), so they are compiled at "
                "every start; delete that folder, or make room for it, or give "
                "--compile_cache=off",
                *(fault[1], folder, fault[2]),
            )

    warnings.showwarning = showwarning


class CompileClock:
    """Times the compilation inside a `with` block.

    Attributes:
        seconds: wall-clock time of the block.
        cached: whether programs were loaded from the cache and none were compiled.
    """

    def __enter__(self) -> "CompileClock":
        self._events: list[str] = []
        jax.monitoring.register_event_listener(self._listen)
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.seconds = time.perf_counter() - self._start
        jax.monitoring.unregister_event_listener(self._listen)
        hits, requests = map(self._events.count, (_HIT, _REQUEST))
        self.cached = 0 < hits == requests

    def _listen(self, event: str, **_: Any) -> None:
        self._events.append(event)
