"""Runs jobs of several processes on this machine."""

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.processes import Finished, finish, start_python


def free_port() -> int:
    """Returns a port that nothing listens at."""
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def start_job(
    processes: int,
    *words: object,
    extra: Sequence[Sequence[object]] = (),
    devices=1,
    port: int | None = None,
) -> list[subprocess.Popen[str]]:
    """Starts a program as the processes of a job, each with its `extra` flags."""
    coordinator = f"--coordinator=localhost:{port or free_port()}"
    words = (*words, coordinator, f"--num_processes={processes}")
    words = (*words, f"--cpu_devices={devices}")
    return [
        start_python(
            *("-m", *words, f"--process_id={process}"),
            *(extra[process] if extra else ()),
        )
        for process in range(processes)
    ]


def finish_job(job: list[subprocess.Popen[str]]) -> list[Finished]:
    """Waits for the processes of a job; ends them after minutes."""
    try:
        return [finish(process) for process in job]
    finally:
        for process in job:
            process.kill()


def run_job(processes: int, *words: object, **arguments: Any) -> list[Finished]:
    """Runs a job, as `start_job`; every process must succeed."""
    finished = finish_job(start_job(processes, *words, **arguments))
    assert [one.returncode for one in finished] == [0] * processes, finished
    return finished


def scratch_folders(folder: Path) -> list[Path]:
    """Returns what jobs left behind in a folder for temporary files."""
    return list(folder.glob("mnist_jax-*"))
