"""Checks that all processes of a job are there, before JAX connects them.

JAX aborts a process whose job does not come together, without naming who is missing.
"""

import contextlib
import errno
import json
import os
import socket
import time
from typing import NamedTuple

from mnist_jax.errors import InputError
from mnist_jax.training.coordination import LINGER_SECONDS


class Job(NamedTuple):
    """A process's position in its job."""

    host: str
    port: int
    processes: int
    process: int

    @property
    def address(self) -> str:
        """The coordinator as `host:port`, with brackets around an IPv6 address."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def check_job(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> Job:
    """Returns the job given by three flags.

    Raises:
        InputError: one is missing or out of range.
    """
    host, _, port = (coordinator or "").rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(
            "--coordinator must be host:port of process 0, such as node0:12345; got "
            f"{coordinator}"
        )
    if num_processes is None or process_id is None:
        raise InputError(
            "--coordinator needs --num_processes and --process_id; give all three to "
            "every process"
        )
    if not 0 <= process_id < num_processes:
        raise InputError(
            "--process_id must be from 0 to --num_processes - 1 = "
            f"{num_processes - 1}; got {process_id}"
        )
    return Job(host.strip("[]"), int(port), num_processes, process_id)


def call_roll(job: Job, timeout: float) -> None:
    """Waits until all processes of a job have started.

    Process 0 listens at the coordinator's port, and closes it before it answers.

    Raises:
        InputError: in every process that has started: some are missing after `timeout`
            seconds, two have the same index, or they disagree about their number.
    """
    limit = time.monotonic() + timeout
    verdict = _listen(job, limit) if job.process == 0 else _report(job, limit)
    if verdict:
        raise InputError(
            f"{verdict}; start the job again (coordinator {job.address}, "
            f"--cluster_timeout={timeout:g} seconds)"
        )


def _listen(job: Job, limit: float) -> str:
    """Returns what is wrong with the job, after telling it to the others."""
    arrived = {0}
    verdict = ""
    with contextlib.ExitStack() as stack:
        connections: list[socket.socket] = []
        with _server(job, limit) as server:
            while len(arrived) < job.processes and not verdict:
                server.settimeout(max(0.01, limit - time.monotonic()))
                try:
                    connection = stack.enter_context(server.accept()[0])
                    connection.settimeout(5)
                    process, processes = json.loads(connection.recv(64))
                except TimeoutError:
                    if time.monotonic() >= limit:
                        verdict = _missing(job, arrived)
                except (OSError, ValueError, TypeError):
                    continue  # not one of ours, such as a port scan
                else:
                    connections.append(connection)
                    verdict = _mismatch(job, arrived, process, processes)
                    arrived.add(process)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(verdict).encode())
    return verdict


def _missing(job: Job, arrived: set[int]) -> str:
    missing = sorted(set(range(job.processes)) - arrived)
    plural = "es" if len(missing) > 1 else ""
    return (
        f"{len(missing)} of {job.processes} processes did not start: process{plural} "
        f"{', '.join(map(str, missing))}"
    )


def _mismatch(job: Job, arrived: set[int], process: int, processes: int) -> str:
    if process in arrived:
        return f"two processes have --process_id={process}"
    if processes != job.processes:
        return (
            f"--num_processes is {job.processes} in process 0 and {processes} in "
            f"process {process}"
        )
    return ""


def _server(job: Job, limit: float) -> socket.socket:
    """Returns a socket at the coordinator's port, once that is free.

    The service of a job whose process 0 was killed still listens for a while.

    Raises:
        InputError: the port is taken, possibly by another process 0.
    """
    limit = min(limit, time.monotonic() + LINGER_SECONDS + 1)
    ipv6 = socket.has_dualstack_ipv6()
    while True:
        try:
            return socket.create_server(
                ("", job.port),
                family=socket.AF_INET6 if ipv6 else socket.AF_INET,
                backlog=job.processes,
                dualstack_ipv6=ipv6,
            )
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > limit:
                raise InputError(
                    f"process 0 cannot listen at port {job.port} of the coordinator "
                    f"({os.strerror(error.errno or 0)}); give a free one"
                ) from error
        verdict = None
        with contextlib.suppress(OSError, ValueError):  # not another process 0
            verdict = _ask(job._replace(host="localhost"), 1)
        if verdict:
            raise InputError(f"{verdict}; give each a different one")
        time.sleep(0.1)


def _report(job: Job, limit: float) -> str:
    """Returns what process 0 says is wrong, or that it cannot be reached."""
    reason = ""
    while (left := limit - time.monotonic()) > 0:
        try:
            if (verdict := _ask(job, left)) is not None:
                return verdict
        except OSError as error:
            reason = f" ({error.strerror or error})"
        except ValueError:  # something else listens there
            reason = " (another program answers at its port)"
        time.sleep(0.1)
    return f"process {job.process} could not reach process 0{reason}"


def _ask(job: Job, timeout: float) -> str | None:
    """Returns the verdict of the process 0 that listens; None if it gives none."""
    with socket.create_connection((job.host, job.port), timeout) as connection:
        # Process 0's clock may have started last; its verdict names more.
        connection.settimeout(timeout + 5)
        connection.sendall(json.dumps([job.process, job.processes]).encode())
        answer = connection.recv(4096)
        return json.loads(answer) if answer else None
