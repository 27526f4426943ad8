"""Measures networks in processes that take turns, one epoch each."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mnist_jax.errors import InputError
from mnist_jax.profiling.hardware import matmul_peaks
from mnist_jax.records.environment import Environment, available_cores

from ..processes import Worker
from .frameworks import FRAMEWORKS, PEAK, Cell, PeerRecord, Setup


class Conditions(NamedTuple):
    """What all measurements of a benchmark run share."""

    setups: Mapping[str, Setup]  # by model
    environment: Environment
    arrays: Path  # the folder written by `save_arrays`


def start(conditions: Conditions, cell: Cell, seed: int) -> Worker:
    """Starts the worker of a cell."""
    framework, setup = FRAMEWORKS[cell.framework], conditions.setups[cell.model]
    threads = str(available_cores())
    return Worker(
        f"{__package__}.{framework.worker}",
        f"--model={cell.model}",
        f"--batch_size={cell.batch_size}",
        f"--train_images={setup.train_images}",
        f"--steady_epochs={setup.steady_epochs}",
        f"--seed={seed}",
        f"--threads={threads}",
        f"--variant={framework.variant}",
        f"--arrays={conditions.arrays}",
        "--turns",
        environment={
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TF_CPP_MIN_LOG_LEVEL": "2",
            **framework.environment,
        },
    )


def measure(
    conditions: Conditions, round_number: int, cells: Sequence[Cell]
) -> list[PeerRecord]:
    """Runs cells of one model and batch size, which take turns after each epoch.

    Episodes in which the machine is slower, which last seconds on shared hosts, then
    meet all of them. The order is reversed in every other cycle of turns. The seed of
    the workers is the number of the round.
    """
    setup, load = conditions.setups[cells[0].model], round(os.getloadavg()[0], 2)
    outcomes: dict[Cell, dict[str, Any]] = {}  # of those that have ended

    def wait(cell: Cell, answer: Callable[[], dict[str, Any]]) -> None:
        """Waits until a worker has trained an epoch or ends."""
        try:
            reply = answer()
            if "epoch" not in reply:
                outcomes[cell] = {"result": reply}
        except InputError as error:
            outcomes[cell] = {"error": str(error)}

    with contextlib.ExitStack() as stack:
        workers = {}
        for cell in cells:  # the first epoch includes compilation
            if cell == PEAK:
                outcomes[cell] = {"result": matmul_peaks()}
                continue
            workers[cell] = stack.enter_context(start(conditions, cell, round_number))
            wait(cell, workers[cell].read)
        for cycle in range(setup.steady_epochs):
            for cell in cells[:: -1 if cycle % 2 else 1]:
                if cell not in outcomes:
                    wait(cell, workers[cell].ask)
    return [
        PeerRecord(
            **cell._asdict(),
            round=round_number,
            run=setup,
            environment=conditions.environment,
            date=time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
            load=load,
            **outcomes[cell],
        )
        for cell in cells
    ]
