"""The console scripts: each runs an installed program as `python -m` would."""

import runpy


def _run(program: str) -> None:
    # As the main module, since absl's --help shows the flags and docstring of that.
    runpy.run_module(f"mnist_jax.{program}", run_name="__main__", alter_sys=True)


def train() -> None:
    """Is `mnist-jax-train`."""
    _run("experiments.train")


def predict() -> None:
    """Is `mnist-jax-predict`."""
    _run("experiments.predict")


def compare() -> None:
    """Is `mnist-jax-compare`."""
    _run("benchmarks.compare")


def throughput() -> None:
    """Is `mnist-jax-throughput`."""
    _run("benchmarks.throughput")
