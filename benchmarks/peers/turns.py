"""Trains a network by several frameworks, in processes that take turns."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mnist_jax.errors import InputError
from mnist_jax.records.environment import available_cores

from ..processes import Worker
from .frameworks import FRAMEWORKS, Race
from .worker import Job, Measurement

# The variables by which OpenMP, MKL and TensorFlow take their numbers of threads.
THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TF_NUM_INTRAOP_THREADS",
    "TF_NUM_INTEROP_THREADS",
)


def start(race: Race, name: str, seed: int, arrays: Path) -> Worker:
    """Starts the worker of a framework; `arrays` is a folder of `save_arrays`."""
    framework = FRAMEWORKS[name]
    fields = dataclasses.fields(Job)
    known = {**vars(race), "seed": seed, "variant": framework.variant, "turns": True}
    return Worker(
        f"{__package__}.{framework.worker}_worker",
        *(f"--{field.name}={known[field.name]}" for field in fields),
        f"--arrays={arrays}",
        environment={
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "TF_CPP_MIN_LOG_LEVEL": "2",
            **dict.fromkeys(THREADS, str(available_cores())),
            **framework.environment,
        },
    )


def take_turns(
    race: Race, names: Sequence[str], seed: int, arrays: Path
) -> dict[str, Measurement]:
    """Trains by each framework; they take turns after each epoch.

    Episodes in which the machine is slower, which last seconds on shared hosts, then
    meet all of them. The order is reversed in every other cycle of turns. If one fails,
    the race ends with its error.
    """
    results: dict[str, Measurement] = {}
    workers: dict[str, Worker] = {}
    with contextlib.ExitStack() as stack:
        for cycle in range(1 + race.steady_epochs):
            for name in names[:: -1 if cycle % 2 else 1]:
                try:
                    if cycle:
                        answer = workers[name].ask()
                    else:  # the first epoch, which includes compilation
                        worker = start(race, name, seed, arrays)
                        workers[name] = stack.enter_context(worker)
                        answer = worker.read()
                except InputError as error:
                    raise InputError(
                        f"{name} failed ({error}); leave it out of --frameworks, or "
                        "run again to repeat this race"
                    ) from error
                if "epoch" not in answer:  # it was the last one
                    results[name] = Measurement(**answer)
                    # Its clean-up would disturb the last epochs of the others.
                    workers[name].end()
    return results
