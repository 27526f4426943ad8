"""Tests of jobs of several processes: layouts, disagreement, kills, signals."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import serialization
from helpers.jobs import free_port, run_job, scratch_folders, start_job
from helpers.processes import Finished, finish
from helpers.programs import DIGITS, run

from mnist_jax.testing import assert_trees_close
from mnist_jax.training.checkpoints import FOLDER
from mnist_jax.training.run_dir import METRICS, PARAMS

pytestmark = pytest.mark.scale

LAYOUTS = {"2x2": (2, 2), "2x1": (2, 1), "1x2": (1, 2), "1x4": (1, 4)}
LONG = "experiments.train", *DIGITS, "--epochs=3000", "--checkpoint_every=1"


def losses(folder: Path) -> list[float]:
    lines = (folder / METRICS).read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def last_checkpoint(folder: Path) -> int:
    epochs = [int(p.stem[5:]) for p in (folder / FOLDER).glob("epoch*.msgpack")]
    return max(epochs, default=0)


def wait_for_checkpoint(folder: Path, after: int = 0) -> None:
    for _ in range(600):
        if last_checkpoint(folder) > after:
            return
        time.sleep(0.1)
    raise AssertionError("no checkpoint within a minute")


@pytest.mark.parametrize("name", ["mlp", "lstm", "cnn"])
def test_every_layout_takes_the_same_steps(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 steps: 5 epochs of 20 batches, the last of them padded."""
    monkeypatch.setenv("XLA_FLAGS", "")  # compiled as for users
    flags = {
        "mlp": ("--model=mlp", "--hidden=16", "--dropout=0.2", "--augment=rotate10"),
        "lstm": ("--model=lstm", "--lstm_units=16", "--dropout=0.2"),
        "cnn": ("--model=cnn", "--conv=8:bn:pool2", "--hidden=16", "--augment=shift1"),
    }[name]
    words = "experiments.train", "--dataset=digits", "--epochs=5", "--batch_size=66"
    found, reached = {}, {}
    for layout, (processes, devices) in LAYOUTS.items():
        folder = tmp_path / layout
        job = *words, *flags, f"--run_dir={folder}"
        if processes > 1:
            run_job(processes, *job, devices=devices)
        else:
            run(*job, f"--cpu_devices={devices}")
        found[layout] = serialization.msgpack_restore((folder / PARAMS).read_bytes())
        reached[layout] = losses(folder)
    pairs = [("2x2", "1x4"), ("2x1", "1x2")]
    if name != "cnn":  # batch normalization is over a device's share of a batch
        pairs.append(("1x2", "1x4"))
    for one, other in pairs:
        np.testing.assert_allclose(reached[one], reached[other], rtol=1e-4)
        assert_trees_close(found[one], found[other], rtol=0, atol=1e-4)
    # Two addends are summed in one order only.
    assert_trees_close(found["2x1"], found["1x2"], rtol=0)


def test_a_checkpoint_resumes_in_another_layout(tmp_path: Path) -> None:
    words = "experiments.train", *DIGITS, "--checkpoint_every=1", "--schedule=constant"
    whole, moved = tmp_path / "whole", tmp_path / "moved"
    run(*words, "--epochs=4", f"--run_dir={whole}", "--cpu_devices=1")
    run(*words, "--epochs=2", f"--run_dir={moved}", "--cpu_devices=1")
    run_job(2, *words, "--epochs=3", f"--run_dir={moved}", "--resume")
    run(*words, "--epochs=4", f"--run_dir={moved}", "--resume", "--cpu_devices=1")
    assert len(losses(moved)) == 4
    np.testing.assert_allclose(losses(moved), losses(whole), rtol=1e-4)


def test_processes_that_differ_are_refused(tmp_path: Path) -> None:
    folders = []
    for number in range(2):
        images, labels = np.full((60, 4, 4), number, np.uint8), np.arange(60) % 3
        arrays = dict(x_train=images, y_train=labels, x_test=images, y_test=labels)
        np.savez(tmp_path / f"{number}.npz", **arrays)
        folders.append(f"--data_dir={tmp_path}/{number}.npz")
    words = "experiments.train", "--dataset=idx", "--batch_size=16", folders[0]
    for flag, what in (
        ("--batch_size=32", "--batch_size"),
        (folders[1], "the sha256 of the data"),
    ):
        job = run_job(2, *words, extra=[[], [flag]], ok=False)
        assert [one.returncode for one in job] == [1, 1]
        refused = f"the processes of the job differ in {what}; make"
        assert all(refused in one.stderr for one in job), job


def test_a_missing_process_ends_the_others(tmp_path: Path) -> None:
    words = "experiments.train", *DIGITS, "--cluster_timeout=3"
    with start_job(2, *words) as job:
        job[0].kill()
        ended = finish(job[1])
    assert ended.returncode != 0 and "test accuracy" not in ended.stdout


def test_an_error_of_one_process_ends_all(tmp_path: Path) -> None:
    words = "experiments.train", *DIGITS, f"--run_dir={tmp_path}"
    extra = [], [f"--init_from={tmp_path}/nothing"]
    first, second = run_job(2, *words, extra=extra, ok=False)
    assert 0 not in (first.returncode, second.returncode)
    assert "No such file" in second.stderr and not (tmp_path / "record.json").exists()


def stop_by_sigterm(job: list[Any], receiver: int) -> list[Finished]:
    """Signals one process of a job, which must stop them all."""
    job[receiver].send_signal(signal.SIGTERM)
    stopped = list(map(finish, job))
    for one in stopped:
        assert one.returncode == 143, stopped
        assert "stopped: the same command with --resume" in one.stderr
    return stopped


@pytest.mark.parametrize("receiver", [0, 1])
def test_sigterm_stops_all_processes_at_the_same_step(
    receiver: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder = tmp_path / "run"
    with start_job(2, *LONG, f"--run_dir={folder}") as job:
        wait_for_checkpoint(folder)
        stop_by_sigterm(job, receiver)
    assert not scratch_folders(tmp_path)
    resume_for_one_epoch(folder)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_the_death_of_a_process_ends_all(victim: int, tmp_path: Path) -> None:
    folder, port = tmp_path / "run", free_port()
    with start_job(3, *LONG, f"--run_dir={folder}", port=port) as job:
        wait_for_checkpoint(folder)
        job[victim].kill()
        killed = time.monotonic()
        ended = list(map(finish, job))
    assert time.monotonic() - killed < 40
    assert 0 not in [one.returncode for one in ended]
    resume_for_one_epoch(folder, port)  # at once, at the same port


def resume_for_one_epoch(folder: Path, port: int | None = None) -> None:
    """Resumes a job of two processes; the rest of a long run would take minutes."""
    done = last_checkpoint(folder)
    with start_job(2, *LONG, f"--run_dir={folder}", "--resume", port=port) as job:
        wait_for_checkpoint(folder, done)
        stopped = stop_by_sigterm(job, 0)
    assert f"resuming after epoch {done}" in stopped[0].stdout
