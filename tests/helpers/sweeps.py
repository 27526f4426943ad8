"""Small sweeps of learning rates on the digits."""

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.sweep_space import combine, parse_space
from benchmarks.sweep_worker import Sweep, Trials
from mnist_jax.data.types import Dataset

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
        machine=dict(platform="cpu", cpu_devices=0, compile_cache=True),
        cores=1,
        quiet=False,
    )
    sweep = dataclasses.replace(sweep, **changes)
    Trials(sweep).fill([{}] * 8 if sweep.tpe else combine(sweep.space))
    return sweep
