"""Tests of the peers benchmark's program: turns, rounds and resuming."""

import pytest
from helpers.peer_records import RACE
from helpers.programs import run

from benchmarks.peers import turns
from benchmarks.peers.__main__ import frameworks_for
from benchmarks.peers.frameworks import PeerRecord
from benchmarks.processes import Worker
from mnist_jax.errors import InputError
from mnist_jax.records.schema import read_jsonl


@pytest.mark.programs
def test_peers_end_to_end_and_resumed(tmp_path, networks):
    model = f"{networks}:Linear"
    command = (
        "benchmarks.peers",
        "--dataset=digits",
        f"--models={model}",
        "--batches=32",
        "--train_size=72",
        "--steady_epochs=2",
        "--rounds=1",
        f"--out={tmp_path}",
    )
    results = tmp_path / "peers.jsonl"
    process = run(*command, "--frameworks=ours")
    assert f"round 1/1: {model}, batches of 32\n  ours " in process.stdout
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
    assert "| plain Flax |" in process.stdout
    networks.write_text(f"{networks.read_text()}\n# edited\n")  # now another race
    run(*command, "--frameworks=ours")
    assert results.read_text().count("\n") == 4


def test_workers_take_turns_until_one_fails(tmp_path, monkeypatch):
    (tmp_path / "turns.py").write_text(FAKE_WORKER)
    log = tmp_path / "log"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(
        turns, "start", lambda _race, name, *_: Worker("turns", name, str(log))
    )
    names = ["ours", "keras_tf", "flax"]
    ended = turns.take_turns(RACE, names, seed=1, arrays=tmp_path)
    assert [ended[name].parameters for name in names] == [4, 4, 4]
    assert log.read_text().split() == [*names, *names[::-1]] * 2
    log.unlink()
    names[1] = "torch"
    error = "^torch failed .ValueError: out of turns.; leave it out of --frameworks"
    with pytest.raises(InputError, match=error):
        turns.take_turns(RACE, names, seed=1, arrays=tmp_path)
    assert log.read_text().split() == [*names, *names[::-1], "ours"]


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
