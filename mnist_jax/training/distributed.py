"""One run on several processes, whose devices JAX connects.

Every process runs the same program on the same data. Process 0 prints, and writes where
the user said; the others write to a temporary copy of that folder, so that no other
code depends on the number of processes. With one process, nothing here does anything.
"""

import contextlib
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from mnist_jax.errors import InputError

TIMEOUT = 60  # default seconds until all processes must have started
_SILENT_SECONDS = 30  # until JAX ends a job with a process that is not heard of


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = TIMEOUT,
) -> None:
    """Connects this process to the others of its job, before any other use of JAX.

    Args:
        coordinator: host and port of process 0, `host:port`; None to take everything
            from the cluster's variables, as `jax.distributed.initialize` does.
        num_processes: how many processes the job has.
        process_id: index of this one, 0..num_processes-1.
        timeout: seconds until all must have started.
    """
    # It would take SIGTERM from the program, which agrees on the chunk to stop after.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=_SILENT_SECONDS,
            shutdown_timeout_seconds=timeout,
        )
    except (ValueError, IndexError, RuntimeError) as error:  # no port: IndexError
        raise InputError(
            f"JAX cannot start the job ({str(error).splitlines()[0]}); give all its "
            "processes --coordinator=host:port of process 0, --num_processes and "
            "--process_id, or start them with srun or mpirun and --cluster=auto"
        ) from error


def is_writer() -> bool:
    """Returns whether this process writes the files of the job and prints."""
    return jax.process_index() == 0


def gather(value: Any) -> np.ndarray:
    """Returns the values of all processes, `[processes,...]`, once all have called."""
    return multihost_utils.process_allgather(np.asarray(value))


def agree(values: Mapping[str, Any]) -> None:
    """Raises InputError in all processes if their values, by name, are different."""
    digests = [zlib.crc32(repr(value).encode()) for value in values.values()]
    found = gather(np.array(digests, np.uint32))
    same = np.all(found == found[0], axis=0)
    if names := [name for name, equal in zip(values, same, strict=True) if not equal]:
        raise InputError(
            f"the processes of the job differ in {', '.join(names)}; make them equal "
            "and start all again"
        )


@contextlib.contextmanager
def output_folder(path: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Yields the folder to write to; creates it, or a temporary one if there is none.

    Processes that keep no files get a temporary copy, which has the runs to resume. So
    all processes must see the folder.
    """
    with contextlib.ExitStack() as stack:
        folder = None if path is None else Path(path).expanduser()
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        if folder is None or not is_writer():
            copy = stack.enter_context(tempfile.TemporaryDirectory(prefix="mnist_jax-"))
            if folder is not None:
                shutil.copytree(folder, copy, dirs_exist_ok=True)
            folder = Path(copy)
        gather(0)  # nothing is written before all have copied it
        yield folder


def put(tree: Any, sharding: Sharding) -> Any:
    """Puts arrays that all processes hold on the devices of a sharding."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda leaf: _put_global(leaf, sharding), tree)


def _put_global(leaf: Any, sharding: Sharding) -> jax.Array:
    if getattr(leaf, "sharding", None) == sharding:
        return leaf
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = _put_global(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)  # `jax.device_put` would compare it between processes
    return jax.make_array_from_callback(values.shape, sharding, values.__getitem__)


def yield_polling_threads() -> None:
    """Lets the threads that wait for the network give way to those that compute.

    Gloo's thread polls without a pause while data are on their way. On a core that also
    computes, Linux let it do so until the next tick of its scheduler, so that each sum
    took 4 ms. With the policy for batch jobs the computing thread interrupts it, and a
    sum takes 0.2 ms: the efficiency of the CNN at batch 128 was 0.60 and is 1.00 (two
    processes with a Zen 5 core each, jax 0.10.2).
    """
    if jax.process_count() == 1 or not hasattr(os, "SCHED_BATCH"):
        return
    for _ in range(5):  # a thread that is just running is not seen
        for task in Path("/proc/self/task").glob("*"):
            with contextlib.suppress(OSError):
                if "epoll" in (task / "wchan").read_text():
                    parameters = os.sched_param(0)
                    os.sched_setscheduler(int(task.name), os.SCHED_BATCH, parameters)
        time.sleep(2e-3)
