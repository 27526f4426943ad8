"""Tests of jobs of several processes; the long ones are in test_scale."""

import os
import select
import threading
from pathlib import Path

import jax
import pytest
from helpers.jobs import run_job, scratch_folders
from helpers.programs import DIGITS, run

from mnist_jax.records.schema import RunRecord, read_json
from mnist_jax.training import distributed
from mnist_jax.training.run_dir import RECORD


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
    assert "test accuracy" in first.stdout and "test accuracy" not in second.stdout
    assert not scratch_folders(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/wchan").exists(), reason="not on Linux")
def test_threads_that_poll_the_network_give_way_to_others(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    end, poll = os.eventfd(0), select.epoll()
    poll.register(end, select.EPOLLIN)
    poller = threading.Thread(target=poll.poll)
    poller.start()
    distributed.yield_polling_threads()
    assert os.sched_getscheduler(poller.native_id) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER  # of this thread
    os.eventfd_write(end, 1)
    poller.join()
    poll.close()
    os.close(end)
