"""Tests that JAX's own settings are respected, or refused by name."""

import json

from helpers.processes import run_python


def test_xla_flags_and_cache_variables_are_kept(tmp_path):
    code = (
        "import json, jax, mnist_jax; mnist_jax.setup()\n"
        "names = ['compilation_cache_dir', 'persistent_cache_min_compile_time_secs',\n"
        "         'persistent_cache_min_entry_size_bytes']\n"
        "values = [getattr(jax.config, f'jax_{name}') for name in names]\n"
        "print(json.dumps([jax.device_count(), *values]))\n"
    )
    given = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=3",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "7",
    }
    printed = run_python("-c", code, **given).stdout
    assert json.loads(printed) == [3, str(tmp_path), 7, -1]
