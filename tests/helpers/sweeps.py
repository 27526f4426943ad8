"""Small sweeps of learning rates on the digits."""

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.sweep_space import combine, parse_space
from benchmarks.sweep_worker import Sweep, Trials
from mnist_jax.cli.main import Machine
from mnist_jax.data.types import Dataset

# Invalid command lines by flag, as in `test_flags.py`.
SWEEP_FLAGS = {
    "vary": [
        *("--vary=colour=1", "--vary=seed=1,2", "--vary=dataset=digits"),
        *("--vary=learning_rate=", "--vary=learning_rate=0", "--vary=conv=8"),
        *("--vary=optimizer=lion", "--vary=model=cnn", "--vary=momentum=0.9"),
        *("--vary=batch_size=99999", "--vary=epochs=1 --vary=epochs=2"),
        *("--vary=learning_rate=log(0,1)", "--vary=learning_rate=log(1e-4,1e-2)"),
        "--vary=validation=none",
    ],
    "samples": ["--samples=-1"],
    "search": ["--search=grid", "--search=tpe"],
    "search_seed": ["--search_seed=-1"],
    "prune": ["--prune=maybe", "--prune --patience=2 --seeds=2"],
    "min_epochs": ["--min_epochs=0", "--min_epochs=2"],
    "reduction": ["--reduction=1"],
    "engine": ["--engine=slurm"],
    "workers": ["--workers=0", "--engine=ray --workers=2"],
    "address": ["--address=auto"],
    "cpus_per_trial": ["--cpus_per_trial=0"],
    "gpus_per_trial": ["--gpus_per_trial=-1"],
}


SMALL = dict(dataset="digits", hidden="16", epochs="4", batch_size="256")


def make_sweep(out: Path, digits: Dataset, rates: str, **changes: Any) -> Sweep:
    """Returns a sweep of learning rates with two seeds each, whose trials wait."""
    out.mkdir(exist_ok=True)
    sweep = Sweep(
        out=out,
        space=parse_space([f"learning_rate={rates}"], ["mlp"]),
        given=SMALL,
        dataset=digits,
        seeds=range(2),
        tpe=False,
        search_seed=0,
        prune=None,
        machine=Machine("cpu", 0, True),
        cores=1,
        quiet=False,
    )
    sweep = dataclasses.replace(sweep, **changes)
    Trials(sweep).fill([{}] * 8 if sweep.tpe else combine(sweep.space))
    return sweep
