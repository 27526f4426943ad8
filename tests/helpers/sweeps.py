"""Small sweeps of learning rates on the digits."""

from pathlib import Path

from benchmarks.sweeps.driver import Sweep
from benchmarks.sweeps.progress import Progress
from benchmarks.sweeps.search import ListSearch, Pruner
from benchmarks.sweeps.space import combine, parse_space
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset

# Invalid command lines by flag, as in `test_flags.py`.
SWEEP_FLAGS = {
    "vary": [
        *("--vary=colour=1", "--vary=seed=1,2", "--vary=dataset=digits"),
        *("--vary=learning_rate=", "--vary=learning_rate=0", "--vary=conv=8"),
        *("--vary=batch_size=1.5", "--vary=optimizer=lion", "--vary=model=cnn"),
        *(
            "--vary=momentum=0.9",
            "--vary=batch_size=99999",
            "--vary=epochs=none",
        ),
        *("--vary=epochs=1 --vary=epochs=2", "--vary=learning_rate=log(0,1)"),
        *("--vary=optimizer=log(1,2)", "--vary=learning_rate=log(1e-4,1e-2)"),
        "--vary=validation=none",
    ],
    "samples": ["--samples=-1", "--samples=x"],
    "search": ["--search=grid", "--search=tpe"],
    "search_seed": ["--search_seed=-1"],
    "prune": ["--prune=maybe", "--prune --patience=2 --seeds=2"],
    "min_epochs": ["--min_epochs=0", "--min_epochs=2"],
    "reduction": ["--reduction=1", "--reduction=3"],
    "engine": ["--engine=slurm"],
    "workers": ["--workers=0", "--engine=ray --workers=2"],
    "address": ["--address=auto"],
    "cpus_per_trial": ["--cpus_per_trial=0", "--cpus_per_trial=2"],
    "gpus_per_trial": ["--gpus_per_trial=-1", "--gpus_per_trial=1"],
}


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
