"""A pytest plugin for tests of networks and steps: devices, and data to train on.

A `conftest.py` asks for it by `pytest_plugins = ["mnist_jax.pytest_plugin"]`. Before
JAX starts, it sets two CPU devices and quick compilation, unless JAX_NUM_CPU_DEVICES
or XLA_FLAGS are set.
"""

import os

import jax
import pytest

from mnist_jax.api import train
from mnist_jax.config import TrainConfig
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.types import Dataset
from mnist_jax.training.run_dir import TrainedRun

# XLA's older fusion code, which jax 0.11 no longer has, compiles in half the time.
HAS_OLD_FUSIONS = jax.__version_info__ < (0, 11)
# For programs that run once and need not be fast: LLVM does not optimize, and compiles
# in one piece, for the one core of a worker. Results differ by rounding only.
QUICK_FLAGS = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_cpu_parallel_codegen_split_count=1",
        *(["--xla_cpu_use_fusion_emitters=false"] if HAS_OLD_FUSIONS else []),
    ]
)


def pytest_configure() -> None:
    """Sets devices and XLA's flags, also for the programs that tests start."""
    os.environ.setdefault("XLA_FLAGS", QUICK_FLAGS)
    if jax.config.values["jax_num_cpu_devices"] < 1:
        jax.config.update("jax_num_cpu_devices", 2)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """scikit-learn's digits, which need no download."""
    return load_dataset("digits")


@pytest.fixture(scope="session")
def mnist() -> Dataset:
    """Real MNIST; the test is skipped if its files are not available."""
    if not os.environ.get("MNIST_JAX_DATA_DIR"):
        pytest.skip("MNIST_JAX_DATA_DIR is not set: no MNIST files available")
    return load_dataset("mnist")


@pytest.fixture(scope="session")
def small_run(digits: Dataset) -> TrainedRun:
    """A small MLP, trained on the digits."""
    config = TrainConfig(dataset="digits", hidden=(16,), epochs=2, batch_size=64)
    return train(config, dataset=digits, quiet=True)[0]
