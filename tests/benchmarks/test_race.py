"""Tests of the peers benchmark's program: turns, rounds and resuming."""

import pytest
from helpers.peer_records import RACE
from helpers.programs import run

from benchmarks.peers import turns
from benchmarks.peers.__main__ import frameworks_for
from benchmarks.peers.frameworks import PeerRecord
from benchmarks.processes import Worker
from mnist_jax.records.schema import read_jsonl


@pytest.mark.programs
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
    assert "round 1/1: mlp, batches of 32\n  ours " in process.stdout
    before = results.read_text()
    process = run(*command, "--frameworks=ours,flax")
    assert results.read_text().startswith(before)
    # A race is run again as a whole, so that all take turns.
    assert "\n  ours " in process.stdout and "\n  flax " in process.stdout

    records = read_jsonl(PeerRecord, results)
    assert [record.framework for record in records] == ["ours", "ours", "flax"]
    for record in records:
        assert len(record.result.epoch_seconds) == 3
        assert 50 < record.result.peak_rss_mb < 5000
    process = run(*command, "--frameworks=flax,ours")
    assert "round 1/1" not in process.stdout and results.read_text().count("\n") == 3
    assert (tmp_path / "peers.md").read_text().strip() in process.stdout


def test_workers_take_turns_and_the_others_continue_if_one_fails(tmp_path, monkeypatch):
    (tmp_path / "turns.py").write_text(FAKE_WORKER)
    log = tmp_path / "log"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(
        turns, "start", lambda _race, name, *_: Worker("turns", name, str(log))
    )
    names = ["ours", "torch", "flax"]
    ended = turns.take_turns(RACE, names, seed=1, arrays=tmp_path)
    assert str(ended.pop("torch")) == "ValueError: out of turns"
    assert [ended["ours"].parameters, ended["flax"].parameters] == [4, 4]
    names = log.read_text().split()
    assert names == "ours torch flax flax torch ours ours flax flax ours".split()


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
result = {"epoch_seconds": [0.0, 1.0], "test_accuracy": 0.9, "parameters": 4}
print(json.dumps(result))
"""


def test_a_race_has_each_framework_that_has_its_network_once():
    names = ["ours", "torch_channels_last", "flax", "ours"]
    assert frameworks_for("mlp", names) == ["ours", "flax"]
    assert frameworks_for("cnn", names) == ["ours", "torch_channels_last", "flax"]
    assert frameworks_for("my.py:Net", names) == ["ours", "flax"]
