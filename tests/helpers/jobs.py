"""Runs jobs of several processes on this machine."""

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from helpers.processes import Finished, finish, start_python


def free_port() -> int:
    """Returns a port that nothing listens at."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def start_job(
    processes: int,
    *words: object,
    extra: Sequence[Sequence[object]] = (),
    devices: int = 1,
    port: int | None = None,
) -> Iterator[list[Any]]:
    """Starts a program as the processes of a job, each with its `extra` flags."""
    job = f"--num_processes={processes}", f"--cpu_devices={devices}"
    job = *job, f"--coordinator=localhost:{port or free_port()}"
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                start_python("-m", *words, *job, f"--process_id={process}", *flags)
            )
            for process, flags in enumerate(extra or [()] * processes)
        ]


def run_job(
    processes: int, *words: object, ok: bool = True, **arguments: Any
) -> list[Finished]:
    """Runs a job, as `start_job`; with `ok`, every process must succeed."""
    with start_job(processes, *words, **arguments) as job:
        finished = list(map(finish, job))
    assert not ok or not any(one.returncode for one in finished), finished
    return finished


def scratch_folders(folder: Path) -> list[Path]:
    """Returns what jobs left behind in a folder for temporary files."""
    return list(folder.glob("mnist_jax-*"))
