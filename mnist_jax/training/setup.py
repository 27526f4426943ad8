"""JAX's settings, to be made before its first operation."""

import jax

from mnist_jax.errors import InputError
from mnist_jax.records.environment import available_cores
from mnist_jax.training.compile_cache import use_compile_cache

PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}


def setup(
    platform: str | None = None, cpu_devices: int = 0, compile_cache: bool = True
) -> None:
    """Sets JAX up as the programs do: a device per CPU core, a compilation cache.

    By default JAX uses all cores of a CPU as one device, on which the CNN trains at
    about half the speed. Call `setup` before any other use of JAX.

    Args:
        platform: "cpu", "gpu" or "tpu"; default: what JAX finds.
        cpu_devices: host devices on a CPU; 0 for one per available core.
        compile_cache: whether to keep compiled programs in the user's cache folder;
            False does not turn off a cache that is already on.

    Raises:
        InputError: JAX finds no such platform, or already runs with other devices.
    """
    if platform not in (None, *PLATFORMS):
        raise InputError(
            f"platform={platform} is unknown; use one of {', '.join(PLATFORMS)}"
        )
    if not isinstance(cpu_devices, int) or not 0 <= cpu_devices <= 1024:
        raise InputError(
            f"cpu_devices must be an integer from 0 to 1024; got {cpu_devices!r}"
        )
    before = jax.config.values["jax_platforms"]
    if platform:
        jax.config.update("jax_platforms", PLATFORMS[platform])
    try:
        _start(platform, cpu_devices or available_cores())
    except InputError:
        jax.config.update("jax_platforms", before)
        raise
    if compile_cache:
        use_compile_cache()


def _start(platform: str | None, cpu_devices: int) -> None:
    """Starts JAX's backends; raises InputError if they cannot be as asked."""
    try:
        if cpu_devices != jax.config.values["jax_num_cpu_devices"]:
            jax.config.update("jax_num_cpu_devices", cpu_devices)
    except RuntimeError as error:
        if jax.local_device_count("cpu") == cpu_devices:
            return
        raise InputError(
            f"setup() cannot change the number of CPU devices to {cpu_devices}: JAX is "
            f"already running with {jax.local_device_count('cpu')}; call setup() "
            "before any other use of JAX (in a notebook, restart the kernel)"
        ) from error
    try:
        backend = jax.default_backend()
    # Without a GPU an assertion in JAX fails, which has no message.
    except (RuntimeError, AssertionError) as error:
        reason = (str(error) or "there is none").splitlines()[0]
        setting = f"--platform={platform}"
        if not platform:
            setting = f"JAX_PLATFORMS={jax.config.values['jax_platforms']}"
        raise InputError(
            f"{setting}: JAX finds no such device ({reason}); install support for it "
            "(docs/command_line.md, 'GPU and TPU') or leave the setting out"
        ) from error
    if platform not in (None, backend):
        raise InputError(
            f"setup() cannot change the platform to {platform}: JAX is already running "
            f"on {backend}; call setup() before any other use of JAX (in a notebook, "
            "restart the kernel)"
        )
