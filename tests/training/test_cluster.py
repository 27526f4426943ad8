"""Tests of jobs of several processes; the long ones are in test_scale."""

import os
import select
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest
from helpers.jobs import free_port, run_job, scratch_folders
from helpers.programs import DIGITS, run

from mnist_jax.config import TrainConfig
from mnist_jax.errors import InputError
from mnist_jax.records.schema import RunRecord, read_json
from mnist_jax.training import cluster
from mnist_jax.training.coordination import CoordinationService
from mnist_jax.training.rollcall import Job, call_roll, check_job
from mnist_jax.training.run_dir import RECORD


@pytest.mark.slow
def test_two_processes_train_what_one_process_with_two_devices_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    words = "experiments.train", *DIGITS, "--epochs=1"
    first, second = run_job(2, *words, f"--run_dir={tmp_path / 'job'}")
    run(*words, "--cpu_devices=2", f"--run_dir={tmp_path / 'alone'}")
    job, alone = (
        read_json(RunRecord, tmp_path / name / RECORD) for name in ("job", "alone")
    )
    assert job.params_sha256 == alone.params_sha256
    assert job.test_accuracy == alone.test_accuracy and job.devices == 2
    assert "test accuracy" in first.stdout and not second.stdout
    assert not scratch_folders(tmp_path)


def test_a_single_process_is_a_job_of_one() -> None:
    assert cluster.processes() == 1 and cluster.is_writer()
    assert cluster.exchange("test", 7) == [7] and cluster.decided("test", 7) == 7
    assert cluster.output_folder(Path("runs")) == Path("runs")
    cluster.agree("test", {"config": TrainConfig()}, "")
    cluster.leave("there is nobody to tell")


def call_together(jobs: list[Job], timeout: float = 5) -> list[str]:
    """Returns what each of the processes is told is wrong."""
    told = [""] * len(jobs)

    def call(index: int) -> None:
        try:
            call_roll(jobs[index], timeout)
        except InputError as error:
            told[index] = str(error)

    threads = [threading.Thread(target=call, args=[i]) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
        time.sleep(0.01)
    for thread in threads:
        thread.join()
    return told


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_roll_call_succeeds_in_any_order(host: str) -> None:
    if host == "[::1]" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6")
    address = f"{host}:{free_port()}"
    jobs = [check_job(address, 3, process) for process in (2, 0, 1)]
    assert call_together(jobs) == [""] * 3
    assert jobs[0].address == address


@pytest.mark.parametrize(
    "processes, counts, timeout, expected",
    [
        ([0, 2], [4, 4], 0.3, "2 of 4 processes did not start: processes 1, 3"),
        ([0, 1, 1], [3] * 3, 5, "two processes have --process_id=1"),
        ([0, 1, 0], [3] * 3, 5, "two processes have --process_id=0"),
        ([0, 1], [3, 2], 5, "--num_processes is 3 in process 0 and 2 in process 1"),
        ([1], [2], 0.3, "process 1 could not reach process 0"),
    ],
)
def test_roll_call_names_what_is_wrong(
    processes: list[int], counts: list[int], timeout: float, expected: str
) -> None:
    port = free_port()
    jobs = [
        Job("localhost", port, count, process)
        for process, count in zip(processes, counts, strict=True)
    ]
    told = call_together(jobs, timeout)
    assert all(expected in message for message in told), told


@pytest.mark.parametrize(
    "given, expected",
    [
        (("node0", 2, 0), "host:port"),
        (("node0:99999", 2, 0), "host:port"),
        (("node0:1234", None, 0), "give all three"),
        (("node0:1234", 2, 2), "from 0 to --num_processes - 1 = 1; got 2"),
    ],
)
def test_job_flags_are_checked(
    given: tuple[str, int | None, int | None], expected: str
) -> None:
    with pytest.raises(InputError, match=expected):
        check_job(*given)


def test_the_roll_is_called_with_what_the_cluster_says(monkeypatch):
    slurm = {"JOB_ID": 7, "STEP_NODELIST": "localhost", "NTASKS": 3, "LOCALID": 0}
    for name, value in {**slurm, "PROCID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("JAX_COORDINATOR_PORT", str(free_port()))
    with pytest.raises(InputError, match="2 of 3 .* did not start: processes 1, 2"):
        cluster.start(timeout=0.1)
    monkeypatch.delenv("SLURM_JOB_ID")
    with pytest.raises(InputError, match="--cluster=auto found no cluster; start"):
        cluster.start(timeout=0.1)


def test_the_service_starts_as_its_process_and_reports_errors(tmp_path, monkeypatch):
    options = {"heartbeat_timeout": 9, "shutdown_timeout": 9, "recoverable": False}
    (tmp_path / "json.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    service = CoordinationService(f"[::]:{free_port()}", 2, **options)
    service._process.kill()
    service._process.wait()
    service.all_end()
    service.shutdown()
    with socket.create_server(("", 0)) as taken, pytest.raises(RuntimeError) as raised:
        CoordinationService(f"[::]:{taken.getsockname()[1]}", 2, **options)
    assert "server" in str(raised.value) and "\n" not in str(raised.value)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(RuntimeError, match="No module named 'jaxlib'"):
        CoordinationService(f"[::]:{free_port()}", 2, **options)


class Client:
    """A key-value store that only this process writes to."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def key_value_set(self, key: str, value: str, allow_overwrite: bool) -> None:
        self.values[key] = value

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        return [item for item in self.values.items() if item[0].startswith(folder)]


def test_a_process_that_never_beats_counts_as_dead(monkeypatch):
    state = SimpleNamespace(client=Client(), num_processes=2, process_id=0)
    monkeypatch.setattr(cluster, "_state", lambda: state)
    monkeypatch.setattr(cluster, "_SILENT_SECONDS", 0)

    def fail(reason: str, hint: str) -> NoReturn:
        raise InputError(reason)

    monkeypatch.setattr(cluster, "fail", fail)
    with pytest.raises(InputError, match="process 1 of the job has died or hangs"):
        cluster._watch(threading.Event())


def test_the_watch_ends_with_its_job(monkeypatch):
    state, following = (
        SimpleNamespace(client=Client(), num_processes=1, process_id=0) for _ in "12"
    )
    states = iter([state, state])  # for its client and number of processes
    monkeypatch.setattr(cluster, "_state", lambda: next(states, following))
    cluster._watch(threading.Event())
    assert not state.client.values


@pytest.mark.skipif(not Path("/proc/self/wchan").exists(), reason="not on Linux")
def test_threads_that_poll_the_network_give_way_to_others(monkeypatch):
    monkeypatch.setattr(cluster, "processes", lambda: 2)
    end, poll = os.eventfd(0), select.epoll()
    poll.register(end, select.EPOLLIN)
    poller = threading.Thread(target=poll.poll)
    poller.start()
    cluster.yield_polling_threads()
    assert os.sched_getscheduler(poller.native_id) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER  # of this thread
    os.eventfd_write(end, 1)
    poller.join()
    poll.close()
    os.close(end)
