"""Sweeps that are stopped in the middle of a run go on there."""

import dataclasses
import fcntl
import json
import os
import re
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_checkpoints import CONFIGS, DAMAGES, start

from benchmarks import compare
from mnist_jax.data.datasets import Dataset
from mnist_jax.errors import Stopped
from mnist_jax.records import files
from mnist_jax.records.files import lock_folder
from mnist_jax.reporting.progress import Reports
from mnist_jax.training import sweep as unfinished

CONFIG = CONFIGS["mlp"]


def outcomes(out: Path, results: str = "compare.jsonl") -> list[dict]:
    """Returns what records say, but for times."""
    lines = [json.loads(line) for line in (out / results).read_text().splitlines()]
    for line in lines:
        line["epochs"] = [
            (e["epoch"], e["loss"], e["val_loss"]) for e in line["epochs"]
        ]
    names = ("config", "epochs", "params_sha256", "test_loss", "test_accuracy")
    kept = [{name: line[name] for name in names} for line in lines]
    together = [(line.get("system"), line["seeds_together"]) for line in lines]
    return sorted(zip(kept, together, strict=True), key=str)


@pytest.fixture
def sweep(digits: Dataset, monkeypatch):
    """Returns what trains the missing seeds as compare does, and may stop it."""

    def train(out: Path, seeds: int = 2, stop: int = 0, config=CONFIG) -> list[int]:
        """Stops after an epoch, if one is given; returns the epochs that were run."""
        told = []

        def on_epoch(epochs):
            told.append(epochs[0].epoch)
            if epochs[0].epoch == stop:
                raise Stopped(2, "")

        reports = Reports(on_epoch, lambda progress: None)
        monkeypatch.setattr(compare, "report_training", lambda *_: reports)
        flags = SimpleNamespace(seeds=seeds, quiet=True)
        monkeypatch.setattr(compare, "FLAGS", flags)
        out.mkdir(exist_ok=True)
        try:
            compare._train(config, digits, out, lambda: None)
            assert not stop
        except Stopped:
            assert told[-1] == stop
        return told

    return train


def test_a_stopped_sweep_goes_on_and_ends_as_if_alone(sweep, tmp_path, capsys):
    alone, halves = tmp_path / "alone", tmp_path / "halves"
    assert sweep(alone) == [1, 2, 3]
    assert sweep(halves, stop=2) == [1, 2]
    [folder] = halves.iterdir()
    assert re.fullmatch(r"unfinished-mlp-seeds0-1-[0-9a-f]{12}", folder.name)
    assert sweep(halves) == [3]
    assert "mlp: going on after epoch 2\n" in capsys.readouterr().out
    assert outcomes(halves) == outcomes(alone)
    assert not folder.exists()
    assert sweep(halves) == [] and len(outcomes(halves)) == 2


def test_a_sweep_killed_among_its_records_writes_the_rest(sweep, tmp_path, monkeypatch):
    alone, halves = tmp_path / "alone", tmp_path / "halves"
    sweep(alone, seeds=3)
    append = compare.append_jsonl

    def kill(path: Path, value: dict) -> None:
        append(path, value)
        if path.name == "compare.jsonl":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(compare, "append_jsonl", kill)
        with pytest.raises(KeyboardInterrupt):
            sweep(halves, seeds=3)
    assert len(outcomes(halves)) == 1
    assert sweep(halves, seeds=3) == []  # no epoch is run again
    assert outcomes(halves) == outcomes(alone)
    details = (halves / "details.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["config"]["seed"] for line in details) == [0, 1, 2]


def test_checkpoints_of_another_config_seed_or_code_are_not_used(
    sweep, tmp_path, monkeypatch
):
    sweep(tmp_path, stop=2)
    for field, value in (("epochs", 2), ("learning_rate", 0.5), ("seed", 1)):
        assert sweep(
            tmp_path, stop=1, config=dataclasses.replace(CONFIG, **{field: value})
        ) == [1]
    assert sweep(tmp_path, seeds=3, stop=1) == [1]
    with monkeypatch.context() as patch:
        patch.setattr(unfinished, "code_digest", lambda: "another")
        assert sweep(tmp_path, stop=1) == [1]
    assert len(list(tmp_path.iterdir())) == 6
    assert sweep(tmp_path, stop=3) == [3]


def test_the_digest_of_the_code_is_that_of_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "__file__", str(tmp_path / "files.py"))
    (tmp_path / "fit.py").write_text("1")
    before = files.code_digest()
    assert before == files.code_digest()
    (tmp_path / "fit.py").write_text("2")
    assert before != files.code_digest()


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoints_are_named_and_the_sweep_starts_anew(
    damage, sweep, tmp_path, caplog, capsys
):
    alone, halves = tmp_path / "alone", tmp_path / "halves"
    sweep(alone)
    sweep(halves, stop=2)
    paths = sorted(halves.rglob("seed1/checkpoints/*.msgpack"))
    assert len(paths) == 2
    for path in paths:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert sweep(halves, stop=1) == [1]
    assert "starting anew" in capsys.readouterr().out
    # Not the later ones of before, which would be taken for the newest.
    left = {path.name for path in halves.rglob("*.msgpack")}
    assert left == {"epoch00001.msgpack"}
    for path in paths:
        assert f"{path} is not used: it is damaged" in caplog.text
    assert sweep(halves) == [2, 3]
    assert outcomes(halves) == outcomes(alone)


def test_a_sweep_killed_within_its_first_checkpoint_trains_every_seed(sweep, tmp_path):
    sweep(tmp_path, stop=1)
    [of_second] = tmp_path.glob("unfinished-*/seed1")
    shutil.rmtree(of_second)
    assert sweep(tmp_path) == [1, 2, 3]
    assert [run["config"]["seed"] for run, _ in outcomes(tmp_path)] == [0, 1]


def test_two_processes_never_train_the_same(sweep, tmp_path, digits, capsys):
    alone, both = tmp_path / "alone", tmp_path / "both"
    sweep(alone)
    both.mkdir()
    context = unfinished.unfinished_folder(
        both, "mlp", CONFIG, digits, range(2), lambda: None
    )
    told = []
    with context:
        other = threading.Thread(target=lambda: told.append(sweep(both)))
        other.start()
        while "mlp: waiting for the process" not in capsys.readouterr().out:
            other.join(0.01)
            assert other.is_alive()
        for name in ("compare.jsonl", "details.jsonl"):
            (both / name).write_bytes((alone / name).read_bytes())
    other.join()
    assert told == [[]]  # what the first has recorded is not run again
    assert outcomes(both) == outcomes(alone)


@pytest.mark.parametrize("module, name", [(os, "open"), (fcntl, "flock")])
def test_a_folder_that_vanishes_before_it_is_locked_is_made_anew(
    module, name, tmp_path, monkeypatch
):
    folder, call, told = tmp_path / "folder", getattr(module, name), []

    def remove_first(*arguments):
        if not told:
            folder.rmdir()
        return call(*arguments)

    monkeypatch.setattr(module, name, remove_first)
    with lock_folder(folder, lambda: told.append("waiting")):
        assert folder.is_dir()
    assert told == ["waiting"]


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_is_not_waited_for(kind, tmp_path):
    folder = tmp_path / "folder"
    folder.touch() if kind == "file" else folder.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OSError), lock_folder(folder, lambda: None):
        pass


# Real programs.

SWEEPS = {
    "compare": (
        *("--models=mlp,cnn", "--conv=8:pool2", "--hidden=16", "--batch_size=256"),
        "--epochs=30",
    ),
    "published": ("--systems=ml10_mlp", "--epochs=30"),
}


@pytest.mark.parametrize("program", SWEEPS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_sweep_goes_on_and_ends_as_if_alone(program, number, tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    command = [
        *(sys.executable, "-m", f"benchmarks.{program}", "--dataset=digits"),
        *(*SWEEPS[program], "--seeds=2"),
    ]
    process = start([*command, f"--out={alone}"])
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    process = start([*command, f"--out={killed}"])
    headers = 0
    for line in process.stdout:  # until the second network's fifth epoch
        headers += line.startswith("epoch ")
        if headers == 2 and line.startswith(" 5/"):
            break
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert "Traceback" not in errors
    if number == signal.SIGTERM:
        assert process.returncode == 128 + number, errors
        assert "the same command goes on where this one stopped" in errors
    assert len(outcomes(killed, f"{program}.jsonl")) == 2
    assert list(killed.glob("unfinished-*"))
    process = start([*command, f"--out={killed}"])
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, output + errors
    assert "not used" not in errors
    _, before, after = re.split(r": going on after epoch (\d+)\n", output)
    rows = [int(row) for row in re.findall(r"^ ?(\d+)/30 ", after, re.MULTILINE)]
    assert rows == list(range(int(before) + 1, 31))
    assert not list(killed.glob("unfinished-*"))
    both = [outcomes(folder, f"{program}.jsonl") for folder in (alone, killed)]
    assert both[0] == both[1] and len(both[0]) == 4


@pytest.mark.parametrize("program", SWEEPS)
def test_a_signal_ends_a_sweep_that_waits_for_another(program, tmp_path):
    command = [
        *(sys.executable, "-m", f"benchmarks.{program}", "--dataset=digits"),
        *(*SWEEPS[program], "--epochs=100000", f"--out={tmp_path}"),
    ]
    processes = [start(command)]
    try:
        while not processes[0].stdout.readline().startswith(" 1/"):
            assert processes[0].poll() is None
        for number in (signal.SIGINT, signal.SIGTERM):
            processes.append(process := start(command))
            while "waiting for the process" not in process.stdout.readline():
                assert process.poll() is None
            process.send_signal(number)
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 128 + number
            assert errors == f"stopped: {unfinished.HOW_TO_GO_ON}\n"
    finally:
        for process in processes:
            process.kill()
            process.communicate()
