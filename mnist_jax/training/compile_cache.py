"""The compilation cache on disk, and a clock that knows whether it was used."""

import hashlib
import platform
import time
from pathlib import Path
from typing import Any

import jax
import jaxlib

from mnist_jax.data.array_cache import cache_dir

_HIT = "/jax/compilation_cache/cache_hits"
_REQUEST = "/jax/compilation_cache/compile_requests_use_cache"


def compile_cache_dir() -> Path:
    """Returns the folder of programs compiled by this jaxlib for this CPU.

    XLA compiles for the very instructions that the CPU has; a program from another type
    may crash.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        wanted = ("model name", "flags", "Features")
        processor = "\n".join(sorted({x for x in lines if x.startswith(wanted)}))
    except OSError:
        processor = platform.processor() or platform.machine()
    digest = hashlib.sha256(processor.encode()).hexdigest()[:12]
    return cache_dir() / "compiled" / f"jaxlib-{jaxlib.__version__}-{digest}"


def use_compile_cache() -> None:
    """Lets JAX keep all compiled programs on disk and take them from there."""
    jax.config.update("jax_compilation_cache_dir", str(compile_cache_dir()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class CompileClock:
    """Measures what is compiled inside a `with` block.

    Attributes:
        seconds: wall-clock of the block.
        cached: programs came from the cache on disk, and none had to be compiled.
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
