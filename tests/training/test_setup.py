"""Tests that JAX's own settings are respected, or refused by name."""

import json
import os
import subprocess
import sys

import jax
import pytest

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.training.experiment import prepare
from mnist_jax.training.setup import setup

REFUSED = {
    "JAX_DISABLE_JIT=True": jax.disable_jit,
    "JAX_NO_TRACING=True": jax.no_tracing,
    "JAX_DEBUG_NANS=True": jax.debug_nans,
    "JAX_DEBUG_INFS=True": jax.debug_infs,
    "JAX_NUMPY_DTYPE_PROMOTION=strict": lambda: jax.numpy_dtype_promotion("strict"),
    "JAX_TRANSFER_GUARD=disallow": lambda: jax.transfer_guard("disallow"),
}


@pytest.mark.parametrize("setting", REFUSED)
def test_settings_that_training_does_not_support_are_refused(setting, digits: Dataset):
    with REFUSED[setting]():
        for start in setup, lambda: prepare(TrainConfig(dataset="digits"), digits):
            with pytest.raises(InputError, match=f"{setting} does not work .* unset"):
                start()


@pytest.mark.parametrize("name", ["jax_platforms", "jax_platform_name"])
def test_a_platform_that_is_not_there_is_named(name, monkeypatch):
    def fail() -> None:
        raise RuntimeError("no backend")

    monkeypatch.setattr(jax, "default_backend", fail)
    before = jax.config.values[name]
    jax.config.update(name, "tpu")
    try:
        with pytest.raises(InputError, match=f"{name.upper()}=tpu: JAX finds no such"):
            setup()
    finally:
        jax.config.update(name, before)


def test_the_number_of_devices_that_jax_was_given_is_kept():
    setup(compile_cache=False)
    assert jax.device_count() == jax.config.values["jax_num_cpu_devices"] == 8


@pytest.mark.parametrize("name", ["MNIST_JAX_CACHE_DIR", "JAX_COMPILATION_CACHE_DIR"])
def test_a_cache_folder_that_is_not_utf8_is_refused(name, monkeypatch):
    setting, folder = "jax_compilation_cache_dir", "/cache\udcff"
    monkeypatch.setenv("MNIST_JAX_CACHE_DIR", folder)
    before = jax.config.values[setting]
    jax.config.update(setting, None if name.startswith("MNIST") else folder)
    try:
        with pytest.raises(InputError, match=f"is not UTF-8 text; set {name} to"):
            setup()
    finally:
        jax.config.update(setting, before)


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
    command = [sys.executable, "-c", code]
    out = subprocess.check_output(command, env={**os.environ, **given}, text=True)
    assert json.loads(out) == [3, str(tmp_path), 7, -1]
