"""The compilation cache on disk, and a timer that reports whether it was used."""

import functools
import hashlib
import os
import platform
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jaxlib
from absl import logging

from mnist_jax.data.array_cache import cache_dir

_HIT = "/jax/compilation_cache/cache_hits"
_REQUEST = "/jax/compilation_cache/compile_requests_use_cache"
_DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '(\w+)'")


def compile_cache_dir() -> Path:
    """Returns the folder for programs compiled by this jaxlib on this type of CPU.

    XLA compiles for the exact instruction set of the CPU; a program compiled on another
    type may crash.
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
    """Enables JAX's persistent compilation cache for all programs.

    It is in JAX_COMPILATION_CACHE_DIR, if JAX has been given one, and JAX's variables
    for what is kept there apply.
    """
    chosen = jax.config.values["jax_compilation_cache_dir"]
    folder = compile_cache_dir()
    settings = {
        "jax_compilation_cache_dir": chosen or str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        if not os.environ.get(name.upper()):
            jax.config.update(name, value)
    # JAX writes entries in place and never replaces one. Of half an entry, left by a
    # kill or a full disk, it would warn at each start.
    if not chosen:  # in which nothing is deleted
        warnings.showwarning = functools.partial(
            _delete_damaged, folder, warnings.showwarning
        )


def _delete_damaged(
    folder: Path,
    show: Callable[..., None],
    message: Warning | str,
    *rest: Any,
    **options: Any,
) -> None:
    """Shows a warning; instead of JAX's about an entry, deletes the entry."""
    if (found := _DAMAGED.match(str(message))) is None:
        show(message, *rest, **options)
        return
    # JAX names the program, which may have entries for other shapes, too.
    for path in folder.glob(f"{found[1]}-*"):
        path.unlink(missing_ok=True)
    logging.warning(
        "a compiled program %s in %s was damaged; all of that name are deleted and "
        "compiled again when they are needed",
        found[1],
        folder,
    )


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
