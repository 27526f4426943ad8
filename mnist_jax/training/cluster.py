"""One run on several processes: start, agreement and end of a job.

Every process runs the same program on the same data, and JAX connects their devices.
Only the first process writes files that are kept and prints: the others write theirs to
a temporary folder, so that no other code depends on the number of processes. Decisions
that depend on one process, such as its clock or a signal, go through `exchange`, over
JAX's coordination service. In a job of one process all functions return at once.
"""

import atexit
import collections
import contextlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from flax import serialization
from jax.sharding import Sharding

from mnist_jax.errors import InputError
from mnist_jax.training import coordination, rollcall

TIMEOUT = 60  # default seconds until all processes must have started
# A process that has not been heard of for so long counts as dead. JAX itself aborts the
# others, with a stack trace, but only after twice that.
_SILENT_SECONDS = 15
_SEE = "see its output, then "
_CHUNK = 1 << 20  # bytes of a value in the key-value store, below gRPC's limit

_counts: collections.Counter[str] = collections.Counter()
_scratch: list[str] = []
_leaving = threading.Lock()


def processes() -> int:
    """Returns the number of processes of the job; 1 without `start`."""
    return int(_state().num_processes or 1)


def process() -> int:
    """Returns the index of this process in the job."""
    return int(_state().process_id or 0)


def is_writer() -> bool:
    """Returns whether this process writes the files of the job and prints."""
    return process() == 0


def _state() -> Any:
    from jax._src.distributed import global_state  # JAX has no public key-value store

    return global_state


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout: int = TIMEOUT,
) -> None:
    """Connects this process to the others of its job.

    Args:
        coordinator: host and port of process 0, `host:port`; None to take everything
            from the cluster's variables, as `jax.distributed.initialize` does.
        num_processes: how many processes the job has.
        process_id: index of this one, 0..num_processes-1.
        timeout: seconds until all must have started.

    Raises:
        InputError: the arguments are invalid, there is no cluster, JAX is already
            running, or a process is missing.
    """
    if jax.distributed.is_initialized():
        raise InputError("this process is already part of a job")
    with _without_proxies():
        given: tuple[Any, ...] = coordinator, num_processes, process_id, None
        if coordinator is None:
            given = _detect(timeout)
        job = rollcall.check_job(*given[:3])
        rollcall.call_roll(job, timeout)
        _connect(job, given[3], timeout)
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=[ended], daemon=True)
    watch.start()
    atexit.register(_end, watch, ended)
    atexit.register(_remove_scratch)


def _end(watch: threading.Thread, ended: threading.Event) -> None:
    """Leaves JAX's service, then ends the watch.

    Python aborts if it ends while a thread is in JAX's code.
    """
    jax.distributed.shutdown()
    ended.set()
    watch.join()


def _detect(timeout: int) -> tuple[Any, ...]:
    """Returns JAX's address, number and index, and the devices of this process."""
    from jax._src.clusters import ClusterEnv

    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    indices = os.environ.get("JAX_LOCAL_DEVICE_IDS")
    reason = ""
    try:
        devices = [int(i) for i in indices.split(",")] if indices else None
        given = address, None, None, devices, None, timeout
        found = ClusterEnv.auto_detect_unset_distributed_params(*given)
        if None not in found[:3]:
            return found
    except (ValueError, RuntimeError) as error:
        reason = f" ({str(error).splitlines()[0].rstrip('.')})"
    raise InputError(
        f"--cluster=auto found no cluster{reason}; start the program with srun or "
        "mpirun, or give --coordinator, --num_processes and --process_id"
    )


def _connect(job: rollcall.Job, devices: Sequence[int] | None, timeout: int) -> None:
    # It takes SIGTERM from the program, which agrees on the step to stop at by itself.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    timer = threading.Timer(timeout, _fail_to_connect, [job.processes, timeout])
    timer.daemon = True
    timer.start()
    try:
        with coordination.in_own_process():
            jax.distributed.initialize(
                job.address,
                job.processes,
                job.process,
                devices,
                cluster_detection_method="deactivate",
                # JAX aborts the process at its timeout, with a stack trace.
                initialization_timeout=timeout + 60,
                heartbeat_timeout_seconds=2 * _SILENT_SECONDS,
                shutdown_timeout_seconds=timeout,
            )
    except RuntimeError as error:
        _state().client = None
        raise InputError(
            f"JAX cannot start the job ({str(error).splitlines()[0]}); start it before "
            "any other use of JAX, with a free port"
        ) from error
    finally:
        timer.cancel()


def _fail_to_connect(processes: int, timeout: int) -> None:
    _state().client = None  # it is not connected: a call would abort this process
    fail(
        f"not all {processes} processes of the job connected within "
        f"--cluster_timeout={timeout} seconds, although all had started"
    )


@contextlib.contextmanager
def _without_proxies() -> Iterator[None]:
    """Hides proxies: gRPC would ask one for the coordinator."""
    proxies = {name: os.environ.pop(name) for name in _proxies()}
    try:
        yield
    finally:
        os.environ.update(proxies)


def _proxies() -> list[str]:
    return [name for name in os.environ if name.lower().endswith("_proxy")]


def exchange(name: str, value: Any = None) -> list[Any]:
    """Returns the values of all processes, by process; waits until all have called.

    Args:
        name: what is exchanged; every process must make the same calls for a name.
        value: this process's value, of what JSON can hold and bytes.
    """
    if processes() == 1:
        return [value]
    client, number = _state().client, _counts[name]
    _counts[name] += 1
    content = serialization.msgpack_serialize([value])
    chunks = [content[i : i + _CHUNK] for i in range(0, len(content), _CHUNK)]
    for index, chunk in enumerate(chunks):
        key = f"{name}/{number}/chunks/{process()}/{index}"
        client.key_value_set_bytes(key, chunk)
    folder = f"{name}/{number}/counts/"
    client.key_value_set(f"{folder}{process()}", str(len(chunks)))
    pause = 5e-4
    # Not a barrier of the service: those give up at a fixed time, and a process may
    # rightly compile, or write a checkpoint, for longer. `_watch` ends a vain wait.
    while len(found := client.key_value_dir_get(folder)) < processes():
        time.sleep(pause)
        pause = min(2 * pause, 0.1)
    lengths = {int(key.rpartition("/")[2]): int(count) for key, count in found}
    if number and is_writer():  # all have read it: they have sent the next one
        client.key_value_delete(f"{name}/{number - 1}/")
    chunks_of = f"{name}/{number}/chunks"
    return [_collect(f"{chunks_of}/{p}", lengths[p]) for p in sorted(lengths)]


def _collect(key: str, chunks: int) -> Any:
    get = _state().client.blocking_key_value_get_bytes
    content = b"".join(get(f"{key}/{index}", 60_000) for index in range(chunks))
    [value] = serialization.msgpack_restore(content)
    return value


def decided(name: str, value: Any) -> Any:
    """Returns the value of process 0, for choices that depend on its clock."""
    return exchange(name, value)[0]


def agree(name: str, values: Mapping[str, Any], advice: str) -> None:
    """Raises InputError in all processes if their values differ, naming the first.

    Args:
        name: as for `exchange`.
        values: by what they are called in the message.
        advice: what to do, for the message.
    """
    mine = json.loads(json.dumps(dict(values), default=str))
    first, *others = exchange(name, mine)
    for number, other in enumerate(others, 1):
        for key in first | other:
            if first.get(key) != other.get(key):
                raise InputError(
                    f"{key} is {first.get(key)} in process 0 and {other.get(key)} in "
                    f"process {number}; {advice}"
                )


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
    sum takes 0.2 ms (two processes with a Zen 5 core each, 93,000 numbers, jax 0.10.2).
    """
    if processes() == 1 or not hasattr(os, "SCHED_BATCH"):
        return
    for _ in range(5):  # a thread that is just running is not seen
        for task in Path("/proc/self/task").glob("*"):
            with contextlib.suppress(OSError):
                if "epoll" in (task / "wchan").read_text():
                    parameters = os.sched_param(0)
                    os.sched_setscheduler(int(task.name), os.SCHED_BATCH, parameters)
        time.sleep(2e-3)


def output_folder(path: Path) -> Path:
    """Returns the folder, or a temporary one in processes that keep no files."""
    if is_writer():
        return path
    _scratch.append(tempfile.mkdtemp(prefix="mnist_jax-process-"))
    return Path(_scratch[-1])


def share_files(folders: Sequence[Path]) -> None:
    """Copies the files of process 0's folders to the folders of the others.

    So all of them find the same finished runs and checkpoints.
    """
    found: list[dict[str, bytes]] = []
    if processes() > 1 and is_writer():
        found = [
            {
                str(path.relative_to(folder)): path.read_bytes()
                for path in sorted([*folder.glob("*.*"), *folder.glob("*/*.*")])
                if path.suffix in (".json", ".msgpack") and path.is_file()
            }
            for folder in folders
        ]
    found = decided("files", found)
    if not is_writer():
        for folder, files in zip(folders, found, strict=True):
            for name, content in files.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)


def _watch(ended: threading.Event) -> None:
    """Ends this process with one sentence once another has failed or is silent."""
    client = _state().client
    start = "", time.monotonic()  # a process may die before its first beat
    heard = {f"alive/{number}": start for number in range(processes())}
    for beat in itertools.count():
        if _state().client is not client:  # `jax.distributed.shutdown` has ended it
            return
        try:
            client.key_value_set(f"alive/{process()}", str(beat), allow_overwrite=True)
            states = dict(client.key_value_dir_get("alive/"))
            reasons = dict(client.key_value_dir_get("ended/"))
        except RuntimeError:
            return  # the job is over, or JAX ends the process
        for key, reason in reasons.items():
            number = key.rpartition("/")[2]
            if reason and int(number) != process():
                fail(f"process {number} of the job ended ({reason})", _SEE)
        now = time.monotonic()
        for key, (last, since) in heard.items():
            if (state := states.get(key, "")) != last:
                heard[key] = state, now
            elif now - since > _SILENT_SECONDS:
                number = key.rpartition("/")[2]
                fail(f"process {number} of the job has died or hangs", _SEE)
        ended.wait(1)


def fail(reason: str, hint: str = "") -> NoReturn:
    """Prints why the job cannot go on and ends this process with status 1."""
    hold_exit()
    advice = (
        f"{hint}run all processes again (with --resume, if the run has checkpoints)"
    )
    print(f"error: {reason}; {advice}", file=sys.__stderr__, flush=True)
    leave(reason)
    os._exit(1)


def hold_exit() -> None:
    """Keeps other threads from ending this process; waits if one already does."""
    if not _leaving.acquire(blocking=False):  # never released
        threading.Event().wait()


def leave(reason: str) -> None:
    """Tells the other processes that this one ends early; call `hold_exit` before.

    The first process waits for them: its end closes JAX's service to them all.

    Args:
        reason: why; empty if all of them end for the same reason.
    """
    client = _state().client
    if client is None:
        return
    _remove_scratch()
    try:
        client.key_value_set(f"ended/{process()}", reason, allow_overwrite=True)
        limit = time.monotonic() + 5
        while is_writer() and time.monotonic() < limit:
            if len(client.key_value_dir_get("ended/")) == processes():
                break
            time.sleep(0.05)
        if is_writer():
            _state().service.all_end()
    except RuntimeError:
        pass  # the first process is gone


def _remove_scratch() -> None:
    for folder in _scratch:
        shutil.rmtree(folder, ignore_errors=True)
