"""JAX's settings, to be made before its first operation."""

import os

import jax

from mnist_jax.errors import InputError
from mnist_jax.records.environment import available_cores
from mnist_jax.training.compile_cache import use_compile_cache

PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}
# JAX's settings under which the compiled epoch does not run, and the values with which
# it does. JAX reads them from variables of the same names in upper case.
_REQUIRED: dict[str, tuple[object, ...]] = {
    "jax_disable_jit": (False,),
    "jax_no_tracing": (False,),
    # A run ends by itself where its loss is not finite: see `diverged.py`.
    "jax_debug_nans": (False,),
    "jax_debug_infs": (False,),
    "jax_numpy_dtype_promotion": ("standard",),
    "jax_transfer_guard": (None, "allow", "log", "log_explicit"),
}


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
        compile_cache: whether to keep compiled programs in the user's cache folder;
            False does not turn off a cache that is already on.
    """
    check_jax_settings()
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
        _start(platform, cpu_devices)
    except InputError:
        jax.config.update("jax_platforms", before)
        raise
    if compile_cache:
        use_compile_cache()


def check_jax_settings() -> None:
    """Raises InputError if a setting of JAX keeps the compiled epoch from running."""
    for name, values in _REQUIRED.items():
        if (value := getattr(jax.config, name)) not in values:
            note = ""
            if "debug" in name:
                note = " and names the layer whose numbers are first not finite"
            raise InputError(
                f"{name.upper()}={value} does not work with training, which compiles "
                f"ahead of time{note}; unset it, or call jax.config.update({name!r}, "
                f"{values[0]!r})"
            )


def _start(platform: str | None, cpu_devices: int) -> None:
    """Starts JAX's backends; raises InputError if they cannot be as asked."""
    set_before = jax.config.values["jax_num_cpu_devices"]
    if not cpu_devices:
        if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
            cpu_devices = set_before  # -1 lets JAX read the flag
        else:
            cpu_devices = set_before if set_before > 0 else available_cores()
    try:
        if cpu_devices != set_before:
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
            by_name = jax.config.values["jax_platform_name"]
            setting = f"JAX_PLATFORMS={jax.config.values['jax_platforms']}"
            if by_name:
                setting = f"JAX_PLATFORM_NAME={by_name}"
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
