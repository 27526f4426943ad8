"""Tests of the peers benchmark's program: turns, rounds and resuming."""

import dataclasses
import importlib.util

import pytest
from helpers.peer_records import ENVIRONMENT, SETUP
from helpers.programs import run

from benchmarks.peers import turns
from benchmarks.peers.__main__ import check_installed, make_plan
from benchmarks.peers.frameworks import PEAK, Cell, PeerRecord
from benchmarks.peers.worker import Measurement
from benchmarks.processes import Worker
from mnist_jax.errors import InputError
from mnist_jax.records.schema import read_jsonl

pytestmark = pytest.mark.slow


def test_peers_end_to_end_and_resumed(tmp_path):
    command = (
        "benchmarks.peers",
        "--dataset=digits",
        "--models=mlp",
        "--batches=32",
        "--train_size=72",
        "--steady_epochs=2",
        "--rounds=1",
        f"--out={tmp_path}",
    )
    results = tmp_path / "peers.jsonl"
    process = run(*command, "--frameworks=ours")
    assert (
        "2 of 2 measurements" in process.stdout and "mlp    32 ours" in process.stdout
    )
    before = results.read_text()
    process = run(*command, "--frameworks=ours,flax")
    assert results.read_text().startswith(before)
    # A group is measured again as a whole, so that all take turns.
    assert "1 of 2 measurements to run" in process.stdout
    assert "  mlp    32 ours" in process.stdout and "  mlp    32 flax" in process.stdout

    peak, *measured = read_jsonl(PeerRecord, results)
    assert peak.cell == PEAK and min(peak.result.values()) > 0
    assert [record.framework for record in measured] == ["ours", "ours", "flax"]
    for record in measured:
        assert set(record.result) == {*Measurement._fields, "peak_rss_mb"}
        assert len(record.result["epoch_seconds"]) == 3
        assert 50 < record.result["peak_rss_mb"] < 5000
    assert (tmp_path / "peers.md").read_text().strip() in process.stdout


def test_workers_take_turns_and_the_others_continue_if_one_fails(tmp_path, monkeypatch):
    (tmp_path / "turns.py").write_text(FAKE_WORKER)
    log = tmp_path / "log"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(
        turns, "start", lambda _, cell, seed: Worker("turns", cell.framework, str(log))
    )
    setups = {"mlp": dataclasses.replace(SETUP, steady_epochs=3)}
    conditions = turns.Conditions(setups, ENVIRONMENT, tmp_path)
    cells = [Cell(name, "mlp", 32) for name in ("ours", "torch", "flax")]
    first, failed, last = turns.measure(conditions, 1, cells)
    assert first.result == {"epoch_seconds": [0.0, 1.0], "name": "ours"}
    assert last.result == {"epoch_seconds": [0.0, 1.0], "name": "flax"}
    assert failed.error == "ValueError: out of turns" and not failed.result
    names = log.read_text().split()
    assert names == "ours torch flax ours torch flax flax ours ours flax".split()


# Logs its name at each of four epochs; "torch" fails in the third.
FAKE_WORKER = """
import json, sys
name, log = sys.argv[1:]
for epoch in range(4):
    if name == "torch" and epoch == 2:
        raise ValueError("out of turns")
    with open(log, "a") as file:
        print(name, file=file)
    if epoch < 3:
        print("some other output", json.dumps({"epoch": epoch}), sep="\\n", flush=True)
        sys.stdin.readline()
print(json.dumps({"epoch_seconds": [0.0, 1.0], "name": name}))
"""


def test_a_missing_framework_is_reported_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_installed([[PEAK], [Cell("flax", "mlp", 32)]])
    with pytest.raises(InputError, match="torch not installed.*make peers"):
        check_installed([[Cell("torch", "mlp", 32)]])


def test_a_plan_has_each_measurement_once_after_the_peak():
    names = ["ours", "torch_channels_last", "flax", "ours"]
    assert make_plan(names, ["mlp", "cnn", "my.py:Net"], [32, 32]) == [
        [PEAK],
        [("ours", "mlp", 32), ("flax", "mlp", 32)],
        [("ours", "cnn", 32), ("torch_channels_last", "cnn", 32), ("flax", "cnn", 32)],
        [("ours", "my.py:Net", 32), ("flax", "my.py:Net", 32)],
    ]
