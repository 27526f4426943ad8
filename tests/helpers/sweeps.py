"""Small sweeps of learning rates on the digits."""

from pathlib import Path
from typing import Any

import optuna

from benchmarks.sweep import combine, parse_space
from benchmarks.sweep_worker import Sweep, open_study
from mnist_jax.data.types import Dataset

SMALL = dict(dataset="digits", hidden="16", epochs="4", batch_size="256")


def make_sweep(
    out: Path,
    digits: Dataset,
    rates: str,
    samples: int = 0,
    pruner: Any = None,
    sampler: Any = optuna.samplers.RandomSampler,
) -> Sweep:
    """Returns a sweep of learning rates with two seeds each, whose trials wait."""
    out.mkdir(exist_ok=True)
    space = parse_space([f"learning_rate={rates}"], ["mlp"])
    sweep = Sweep(
        out=out,
        study=open_study(out, pruner or optuna.pruners.NopPruner()),
        space=space,
        sampler=sampler,
        search_seed=0,
        given=SMALL,
        dataset=digits,
        seeds=range(2),
        machine=dict(platform="cpu", cpu_devices=1, compile_cache=True),
        cores=1,
        gpus=0,
    )
    sweep.add([{}] * samples or combine(space))
    return sweep
