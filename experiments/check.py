"""Checks that a custom network trains correctly, and prints a row per check.

python -m experiments.check --model=examples/vit.py:ViT
"""

import time

from absl import flags

from mnist_jax.cli.config_flags import config_from_flags, define_config_flags
from mnist_jax.cli.flags import define_machine_flags
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.types import MNIST
from mnist_jax.errors import InputError
from mnist_jax.testing import CHECKS, check_model

FLAGS = flags.FLAGS


def main() -> None:
    """Runs the checks."""
    config = config_from_flags(FLAGS)
    start_jax(cpu_devices=2)
    shapes = MNIST
    failed: list[str] = []
    if config.dataset == "idx":  # the only images with a shape of their own
        shapes = load_dataset("idx", FLAGS.data_dir).shapes
    for name in CHECKS:
        start, outcome = time.perf_counter(), "passed"
        try:
            check_model(config.model, *shapes, config.model_args, [name])
        except Exception as error:  # after a failure also of the user's own code
            if not (failed or isinstance(error, AssertionError)):
                raise
            outcome = f"FAILED: {error}"
            failed.append(name)
        print(f"{name:<10}{time.perf_counter() - start:6.1f} s  {outcome}", flush=True)
    if failed:
        raise InputError(f"{config.model} fails {', '.join(failed)}")


def run() -> None:
    """Entry point."""
    define_config_flags(only=("model", "model_args", "dataset"))
    define_machine_flags()
    run_program(main)


if __name__ == "__main__":
    run()
