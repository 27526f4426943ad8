"""Where the workers of a sweep run: processes of this machine, or a Ray cluster."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

from absl import logging

from mnist_jax.cli.main import SIGNALS, start_jax
from mnist_jax.errors import InputError
from mnist_jax.records.environment import check_packages
from mnist_jax.reporting.sweep_tables import JOURNAL

from .sweep_worker import ATTEMPTS, Queue, Sweep, Worker

POLL_SECONDS = 0.1


def run_processes(sweep: Sweep, workers: int, poll: Callable[[], None]) -> None:
    """Trains trials side by side in processes that share the cores.

    Args:
        sweep: what to train.
        workers: number of processes.
        poll: called several times a second; raises to stop.

    Raises:
        InputError: a process ended with an error, which it has printed.
    """
    context, queue = multiprocessing.get_context("spawn"), Queue(sweep)

    def start(number: int) -> Any:
        words = sweep, number, workers
        process = context.Process(target=_work, args=words, daemon=True)
        process.start()
        return process

    processes = {number: start(number) for number in range(workers)}
    try:
        while processes:
            poll()
            time.sleep(POLL_SECONDS)
            ended = [n for n, process in processes.items() if not process.is_alive()]
            for number in ended:
                if not (code := processes.pop(number).exitcode):
                    continue
                if code > 0 or not queue.requeue(number):
                    raise InputError(f"a worker ended with exit code {code}, see above")
                print(f"a worker ended with exit code {code}, its trial is resumed")
                processes[number] = start(number)
    finally:
        for process in processes.values():  # what they have written can be resumed
            process.kill()
            process.join()


def _share_accelerator(share: float) -> None:
    """Lets JAX take only a share of the memory of an accelerator, before it starts."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.75 * share:.3f}")


def _work(sweep: Sweep, number: int, workers: int) -> None:
    """Trains trials in a process of this machine until none waits."""
    for received in {*SIGNALS} - {signal.SIGTERM}:  # they reach all of a terminal
        signal.signal(received, signal.SIG_IGN)
    logging.set_verbosity(logging.WARNING)
    _share_accelerator(1 / workers)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        first = number * sweep.cores % len(cores)
        os.sched_setaffinity(0, cores[first : first + sweep.cores])
    parent = os.getppid()

    def check_parent() -> None:
        if os.getppid() != parent:  # it was killed
            os._exit(1)

    try:
        start_jax(sweep.machine)
        worker = Worker(sweep, number, check_parent)
        while worker.train_next():
            pass
    except InputError as error:
        sys.exit(f"error: {error}")


def run_on_ray(
    sweep: Sweep, address: str, gpus: float, poll: Callable[[], None]
) -> None:
    """Trains trials as tasks, as many at a time as the nodes have CPUs and GPUs for.

    Args:
        sweep: what to train, in a folder that all nodes share.
        address: of the cluster.
        gpus: GPUs for a trial.
        poll: called several times a second; raises to stop.

    Raises:
        InputError: Ray is not installed, there is no such cluster, or no node is large
            enough; a task ended with an error.
    """
    ray: Any = _connect(address)
    try:
        if not any(
            node["Alive"]
            and node["Resources"].get("CPU", 0) >= sweep.cores
            and node["Resources"].get("GPU", 0) >= gpus
            for node in ray.nodes()
        ):
            raise InputError(
                f"no node of the Ray cluster has --cpus_per_trial={sweep.cores} and "
                f"--gpus_per_trial={gpus:g}; give less, or start larger nodes"
            )
        task = ray.remote(train_task).options(
            num_cpus=sweep.cores,
            num_gpus=gpus,
            max_retries=ATTEMPTS,
            scheduling_strategy="SPREAD",
        )
        shared, waiting = ray.put(sweep), len(Queue(sweep).trials("WAITING"))
        tasks = [task.remote(shared, number, gpus) for number in range(waiting)]
        while tasks:
            poll()
            ended, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=POLL_SECONDS)
            ray.get(ended)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, InputError) else error) from None
    except ray.exceptions.RayError as error:
        raise InputError(f"{error} (after {ATTEMPTS} retries)") from error
    finally:
        ray.shutdown()  # also ends the tasks that run


def _connect(address: str) -> ModuleType:
    """Returns Ray, connected to a cluster; raises as `run_on_ray`."""
    check_packages("--engine=ray", ["ray"], "sweep")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # It would start every worker by `uv run`, which needs the network and a lock file.
    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    import ray

    if address == "auto":  # as Ray does
        address = os.environ.get("RAY_ADDRESS") or address
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        host, colon, port = address.rpartition(":")
        if colon and port.isdigit() and "/" not in address:  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=5).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start "
            "--head`, or give its address by --address or RAY_ADDRESS"
        ) from error
    for number, handler in handlers.items():  # Ray has set its own
        signal.signal(number, handler)
    return ray


_worker: Worker | None = None  # of this process of a cluster


def train_task(sweep: Sweep, number: int, gpus: float) -> None:
    """Trains the next trial in a process of the cluster.

    Args:
        sweep: what to train.
        number: of the task, which Ray repeats if its process or node dies.
        gpus: GPUs of the process.
    """
    global _worker
    if not (sweep.out / JOURNAL).exists():
        raise InputError(
            f"{socket.gethostname()} has no {sweep.out}; give an --out that all nodes "
            "share"
        )
    if _worker is None:
        logging.set_verbosity(logging.WARNING)
        if gpus:
            _share_accelerator(min(gpus, 1))
        os.environ["NPROC"] = str(sweep.cores)  # threads of XLA:CPU
        devices = sweep.machine.cpu_devices or sweep.cores
        start_jax(sweep.machine._replace(cpu_devices=devices))
        _worker = Worker(sweep, number, lambda: None)
    _worker.number = number
    _worker.queue.requeue(number)
    _worker.train_next()
