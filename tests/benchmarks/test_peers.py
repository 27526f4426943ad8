"""Tests of the peers benchmark: FLOP counts, tables, workers, turns and program."""

import dataclasses
import importlib.util
import json
import re
from typing import Any

import pytest
from helpers.processes import ROOT, run_python
from helpers.programs import run
from helpers.records import make_environment

from benchmarks.peers import flax_worker, turns
from benchmarks.peers.__main__ import frameworks_for
from benchmarks.peers.frameworks import FRAMEWORKS, PeerRecord, Race
from benchmarks.peers.tables import format_ratios, group, ratio_frame
from benchmarks.peers.worker import EXAMPLES, Job, Measurement, save_arrays
from benchmarks.processes import Worker
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import DIGITS, IMAGE_SHAPE, MNIST, Dataset, Split
from mnist_jax.errors import InputError
from mnist_jax.models.flops import multiply_adds, training_flops
from mnist_jax.models.networks import count_params, create_model
from mnist_jax.records.schema import read_jsonl
from mnist_jax.reporting.tables import latest_table

RESULTS = ROOT / "benchmarks" / "results" / "peers.jsonl"
KERAS = "keras", "tensorflow"
RACE = Race(
    model="mlp",
    batch_size=128,
    train_images=60_000,
    steady_epochs=3,
    dataset="mnist",
    checksum="0",
    code="c0de",
    packages="torch 2",
)


def rounds(
    framework: str, *seconds: float, device: str = "made up", **changes: Any
) -> list[PeerRecord]:
    """Returns measurements, each with three steady epochs of the same time."""
    return [
        PeerRecord(
            race=dataclasses.replace(RACE, **changes),
            framework=framework,
            round=number,
            environment=make_environment(device=device),
            result=Measurement([9.0, *3 * [steady]], 0.97, 118_282, 400),
        )
        for number, steady in enumerate(seconds, 1)
    ]


def test_flops_by_hand():
    dense, conv, lstm = (Job(model).config for model in ("mlp", "cnn", "lstm"))
    assert multiply_adds(dense, MNIST) == [784 * 128, 128 * 128, 128 * 10]
    assert multiply_adds(conv, MNIST) == [
        26 * 26 * 9 * 1 * 32,
        11 * 11 * 9 * 32 * 64,  # 26 / 2 = 13, 13 - 2 = 11
        3 * 3 * 9 * 64 * 64,  # 11 / 2 = 5, 5 - 2 = 3
        576 * 64,
        64 * 10,
    ]
    inner = 3 * [28 * 128 * 512]
    assert multiply_adds(lstm, MNIST) == [28 * 28 * 512, *inner, 128 * 32, 32 * 10]
    stages = ("4:k5:same:s2", "8:same:pool3")
    config = TrainConfig(model="cnn", conv=stages, hidden=(), epochs=1)
    sizes = [14 * 14 * 25 * 4, 14 * 14 * 9 * 4 * 8, 4 * 4 * 8 * 10]
    assert multiply_adds(config, MNIST) == sizes
    # Three matmuls of the forward pass's size per layer, two for the first layer.
    cnn = 6 * (2_230_272 + 331_776 + 36_864 + 640) + 4 * 194_688
    assert training_flops(conv, MNIST) == cnn == 16_376_064


MADE_UP = [
    *rounds("ours", 0.2, 0.25, 0.2),
    *rounds("torch", 0.6, 0.6, 0.8),
    *rounds("torch_malloc", 0.5, 0.5, 0.45),
    *rounds("keras_tf", 1.4, 1.5),
    *rounds("flax", 0.1, 0.1, 0.1),
]


def test_every_recorded_race_has_a_row():
    races = group(latest_table(read_jsonl(PeerRecord, RESULTS)))
    page = (ROOT / "docs" / "benchmarks.md").read_text()  # which test_readme compares
    table = page.split("<!-- peers -->")[1].split("<!-- /peers -->")[0]
    rows = set(re.findall(r"^\| (\S+) +\| +(\d+) \|", table, re.MULTILINE))
    assert rows == {(race.model, str(race.batch_size)) for race in races}


def test_the_latest_machine_versions_and_code_have_the_table():
    older = [
        *rounds("ours", 0.3, device="another"),
        *(*rounds("ours", 0.3, packages=""), *rounds("ours", 0.3, code="new")),
    ]
    latest = rounds("ours", 0.3, 0.3)
    assert latest_table([*older, *latest]) == latest


def ratios(records: list[PeerRecord]) -> list[dict[str, object]]:
    return ratio_frame(group(records)).to_dict("records")


def test_speedup_is_of_lower_quartiles_over_the_fastest_peer():
    fastest, installed, baseline = ratios(MADE_UP)
    assert fastest["peer"] == FRAMEWORKS["torch_malloc"].label
    assert fastest["speedup"] == "2.25 [2.00, 2.50]" and fastest["medians"] == "2.50"
    assert fastest["n"] == 9 and fastest["verdict"] == "faster"
    assert installed["peer"] == "PyTorch, as installed"
    assert installed["speedup"].startswith("3.00 [2.40, ")
    assert baseline["peer"] == "plain Flax" and baseline["verdict"] == "slower"
    assert baseline["speedup"].startswith("0.50 [")
    assert "2.25 [2.00, 2.50]" in format_ratios(MADE_UP)


def test_plain_flax_alone_is_compared_too():
    (row,) = ratios([*rounds("ours", 0.2), *rounds("flax", 0.6)])
    assert row["peer"] == "plain Flax" and row["speedup"] == "3.00 [3.00, 3.00]"


def test_a_verdict_needs_an_interval_without_one():
    slower = [*rounds("ours", 1.0, 1.0, 1.0), *rounds("torch", 0.8, 0.9, 0.9)]
    unclear = [*rounds("ours", 1.0, 1.0, 1.0), *rounds("torch", 0.8, 1.3, 1.3)]
    verdicts = [row["verdict"] for found in (slower, unclear) for row in ratios(found)]
    assert verdicts == ["slower", "undecided"]


def test_bfloat16_is_compared_with_bfloat16():
    half = [*rounds("ours_bfloat16", 0.1), *rounds("torch_bfloat16", 0.4)]
    *full, row, own = ratios([*MADE_UP, *half])
    assert row["peer"] == "PyTorch + malloc, bfloat16" and row["ours"] == "bfloat16"
    assert row["speedup"] == "4.00 [4.00, 4.00]"
    assert own["peer"] == "ours" and own["speedup"] == "2.00 [2.00, 2.00]"
    assert full == ratios(MADE_UP)


def test_rounds_without_both_measurements_do_not_count():
    (row,) = ratios(MADE_UP[1:2] + MADE_UP[3:7])
    assert row["speedup"] == "2.40 [2.40, 2.40]"
    assert ratios(MADE_UP[3:]) == []
    again = [*rounds("ours", 1.0), *rounds("torch", 1.0)]  # the last one counts
    (row,) = ratios([*rounds("ours", 0.5), *again])
    assert row["speedup"] == "1.00 [1.00, 1.00]"


@pytest.fixture(scope="module")
def toy(digits: Dataset) -> Dataset:
    """72 of the small digits: two batches of 32 and a last one of 8."""
    train, test = Split(*(a[:72] for a in digits.train)), (a[:40] for a in digits.test)
    return Dataset(train, Split(*test), class_names=DIGITS)


def check(measurement: Measurement, job: Job, biases: int = 0) -> None:
    assert len(measurement.epoch_seconds) == job.epochs
    assert all(seconds > 0 for seconds in measurement.epoch_seconds)
    assert 0 <= measurement.test_accuracy <= 1
    parameters = count_params(create_model(job.config, MNIST), IMAGE_SHAPE)
    assert measurement.parameters == parameters + biases


@pytest.mark.parametrize("model", ["mlp", "lstm", "cnn", "examples/resnet.py:ResNet"])
def test_plain_flax_trains_every_network(model, toy):
    job = Job(model, batch_size=36, steady_epochs=1)
    check(flax_worker.measure(job, toy), job)


@pytest.mark.parametrize("variant", ["eager", "channels_last", "bfloat16"])
@pytest.mark.parametrize("model", ["mlp", "lstm", "cnn", *EXAMPLES])
def test_torch_trains_every_network(model, variant, toy):
    pytest.importorskip("torch", reason="`make peers` has PyTorch")
    from benchmarks.peers import torch_worker

    job = Job(model, batch_size=32, steady_epochs=1, variant=variant)
    twice = {"lstm": 1024, "LSTM": 256, "GRU": 256}  # the biases of each gate
    biases = twice.get(model.rpartition(":")[2], 0)
    check(torch_worker.measure(job, toy), job, biases)


@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_a_worker_ends_with_a_line_of_json(backend, toy, tmp_path):
    if not all(map(importlib.util.find_spec, KERAS)):
        pytest.skip("`make peers` has Keras with TensorFlow")
    save_arrays(toy, tmp_path)
    process = run_python(
        *("-m", "benchmarks.peers.keras_worker", "--model=mlp", "--batch_size=32"),
        *("--seed=1", "--steady_epochs=1", f"--arrays={tmp_path}"),
        f"--variant={backend}",
    )
    measurement = Measurement(**json.loads(process.stdout.splitlines()[-1]))
    assert len(measurement.epoch_seconds) == 2 and measurement.parameters == 118_282


@pytest.mark.programs
def test_peers_end_to_end_and_resumed(tmp_path, networks):
    model = f"{networks}:Linear"
    command = (
        *("benchmarks.peers", "--dataset=digits", f"--models={model}", "--batches=32"),
        *("--train_size=72", "--steady_epochs=2", "--rounds=1", f"--out={tmp_path}"),
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
