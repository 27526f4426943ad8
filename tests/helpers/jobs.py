"""Runs jobs of several processes on this machine."""

import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.programs import ROOT, Finished

INVALID_FLAGS = {
    "coordinator": ["--coordinator=node0", "--coordinator=node0:12345"],
    "num_processes": ["--num_processes=0", "--num_processes=2"],
    "process_id": ["--process_id=-1", "--process_id=0"],
    "cluster": ["--cluster=slurm", "--cluster=auto"],
    "cluster_timeout": ["--cluster_timeout=0"],
}


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
    """Starts the processes of a job.

    Args:
        processes: how many.
        *words: module of the program and its flags.
        extra: more flags of each process.
        devices: CPU devices of each process.
        port: of the coordinator; by default a free one.
    """
    coordinator = f"--coordinator=localhost:{port or free_port()}"
    words = (*words, coordinator, f"--num_processes={processes}")
    words = (*words, f"--cpu_devices={devices}")
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", *map(str, words), f"--process_id={process}"),
                *(map(str, extra[process]) if extra else ()),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]


def finish(job: list[subprocess.Popen[str]]) -> list[Finished]:
    """Waits for the processes of a job; ends them after minutes."""
    try:
        outputs = [process.communicate(timeout=200) for process in job]
    finally:
        for process in job:
            process.kill()
    return [
        Finished(process.returncode, *output)
        for process, output in zip(job, outputs, strict=True)
    ]


def run_job(processes: int, *words: object, **arguments: Any) -> list[Finished]:
    """Runs a job, as `start_job`; every process must succeed."""
    finished = finish(start_job(processes, *words, **arguments))
    assert [one.returncode for one in finished] == [0] * processes, finished
    return finished


def scratch_folders(folder: Path) -> list[Path]:
    """Returns what jobs left behind in a folder for temporary files."""
    return list(folder.glob("mnist_jax-process-*"))
