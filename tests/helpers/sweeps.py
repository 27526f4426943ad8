"""Small sweeps of learning rates on the digits."""

from pathlib import Path

from benchmarks.sweeps.driver import Sweep
from benchmarks.sweeps.progress import Progress
from benchmarks.sweeps.search import ListSearch, Pruner
from benchmarks.sweeps.space import combine, parse_space
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset


def make_config(settings: dict[str, str]) -> TrainConfig:
    """Returns a small config with the settings that the tests vary."""
    return TrainConfig(
        model=settings["model"],
        dataset="digits",
        hidden=(16,),
        epochs=4,
        batch_size=256,
        learning_rate=float(settings["learning_rate"]),
    )


def make_sweep(out: Path, digits: Dataset, rates: str, prune: bool = False) -> Sweep:
    """Returns a sweep of learning rates with two seeds each."""
    settings = combine(parse_space([f"learning_rate={rates}"], ["mlp"]))
    pruner = Pruner(1, 2) if prune else None
    progress, search = Progress(quiet=True), ListSearch(settings)
    return Sweep(out, digits, range(2), search, make_config, pruner, progress)
