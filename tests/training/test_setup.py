"""Tests that JAX's own settings are respected, or refused by name."""

import json

import jax
import pytest
from helpers.processes import run_python

from mnist_jax.errors import InputError
from mnist_jax.training.jax_setup import setup


def test_a_platform_that_is_not_there_is_named(monkeypatch):
    def fail() -> None:
        raise RuntimeError("no backend")

    monkeypatch.setattr(jax, "default_backend", fail)
    before = jax.config.values["jax_platforms"]
    jax.config.update("jax_platforms", "tpu")
    try:
        with pytest.raises(InputError, match="JAX_PLATFORMS=tpu: JAX finds no such"):
            setup()
    finally:
        jax.config.update("jax_platforms", before)


def test_the_number_of_devices_that_jax_was_given_is_kept():
    setup(compile_cache=False)
    assert jax.device_count() == jax.config.values["jax_num_cpu_devices"] == 8


@pytest.mark.slow
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
