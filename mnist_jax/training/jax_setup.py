"""Sets up JAX's devices and its cache of compiled programs; times compilations."""

import hashlib
import os
import time
from typing import Any

import jax
import jaxlib

from mnist_jax.data.cache import cache_dir
from mnist_jax.errors import InputError
from mnist_jax.records.environment import available_cores, cpu_info

PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
_HIT = "/jax/compilation_cache/cache_hits"
_REQUEST = "/jax/compilation_cache/compile_requests_use_cache"


def setup(
    platform: str | None = None, cpu_devices: int = 0, compile_cache: bool = True
) -> None:
    """Sets JAX up as the programs do: a device per CPU core, a compilation cache.

    By default JAX uses all cores of a CPU as one device, on which the CNN trains at
    about half the speed. Call `setup` before any other use of JAX.

    Args:
        platform: "cpu", "gpu" or "tpu"; default: what JAX finds.
        cpu_devices: host devices on a CPU; 0 for as many as JAX is set to use, by
            JAX_NUM_CPU_DEVICES or XLA_FLAGS, or else one per available core.
        compile_cache: whether to keep compiled programs in the user's cache folder, or
            in JAX_COMPILATION_CACHE_DIR; False does not turn off a cache that is on.
    """
    before = jax.config.values["jax_num_cpu_devices"]  # -1 lets JAX read XLA_FLAGS
    by_flag = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not cpu_devices:
        cpu_devices = before if by_flag or before > 0 else available_cores()
    if cpu_devices != before:
        jax.config.update("jax_num_cpu_devices", cpu_devices)
    if platform:
        jax.config.update("jax_platforms", PLATFORMS[platform])
    try:
        backend = jax.default_backend()
    # Without a GPU an assertion in JAX fails, which has no message.
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or "there is none").splitlines()[0]
        setting = f"JAX_PLATFORMS={jax.config.values['jax_platforms']}"
        if platform:
            setting = f"--platform={platform}"
        raise InputError(
            f"{setting}: JAX finds no such device ({reason}); install JAX for it, see "
            "https://docs.jax.dev/en/latest/installation.html, or leave the setting out"
        ) from error
    if platform not in (None, backend):
        raise InputError(
            f"setup() cannot change the platform to {platform}: JAX is already running "
            f"on {backend}; call setup() before any other use of JAX (in a notebook, "
            "restart the kernel)"
        )
    if compile_cache:
        _use_compile_cache()


def _use_compile_cache() -> None:
    """Enables JAX's persistent compilation cache for all programs.

    JAX's variables for the folder and what is kept there apply, if they are set. By
    default the folder is for this jaxlib on this type of CPU: XLA compiles for its
    exact instruction set, and a program compiled on another type may crash.
    """
    found = cpu_info()
    processor = [found.get(name, "") for name in ("model name", "flags", "Features")]
    digest = hashlib.sha256(repr(processor).encode()).hexdigest()[:12]
    folder = cache_dir() / "compiled" / f"jaxlib-{jaxlib.__version__}-{digest}"
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(folder))
    settings = {
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        if not os.environ.get(name.upper()):
            jax.config.update(name, value)


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
