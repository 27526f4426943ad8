"""Train, compare and time small image classifiers on MNIST with JAX and Flax.

The names below are imported when they are first used, so that `import mnist_jax` takes
no time and touches no device.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mnist_jax.api import compare as compare
    from mnist_jax.api import train as train
    from mnist_jax.config import TrainConfig as TrainConfig
    from mnist_jax.data.datasets import load_dataset as load_dataset
    from mnist_jax.data.types import Dataset as Dataset
    from mnist_jax.data.types import Split as Split
    from mnist_jax.data.user_images import read_image as read_image
    from mnist_jax.errors import InputError as InputError
    from mnist_jax.testing import check_model as check_model
    from mnist_jax.testing import check_step as check_step
    from mnist_jax.training.jax_setup import setup as setup
    from mnist_jax.training.run_dir import TrainedRun as TrainedRun
    from mnist_jax.training.run_dir import load_run as load_run
    from mnist_jax.training.steps import Metrics as Metrics
    from mnist_jax.training.steps import TrainState as TrainState
    from mnist_jax.training.steps import eval_step as eval_step
    from mnist_jax.training.steps import init_state as init_state
    from mnist_jax.training.steps import train_step as train_step

    __version__: str

_MODULES = {
    "Dataset": "data.types",
    "Split": "data.types",
    "InputError": "errors",
    "Metrics": "training.steps",
    "TrainConfig": "config",
    "TrainState": "training.steps",
    "TrainedRun": "training.run_dir",
    "check_model": "testing",
    "check_step": "testing",
    "compare": "api",
    "eval_step": "training.steps",
    "init_state": "training.steps",
    "load_dataset": "data.datasets",
    "load_run": "training.run_dir",
    "read_image": "data.user_images",
    "setup": "training.jax_setup",
    "train": "api",
    "train_step": "training.steps",
}
__all__ = [*_MODULES]


if not TYPE_CHECKING:  # so that type checkers find names that do not exist

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return importlib.import_module("importlib.metadata").version("mnist-jax")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
