"""Tests of the peers benchmark: FLOP counts, tables, workers and program."""

import importlib.util
import json
from pathlib import Path

import pytest
from helpers.peer_records import record, rounds
from helpers.processes import run_python

from benchmarks.peers import flax_worker
from benchmarks.peers.frameworks import FRAMEWORKS, PeerRecord
from benchmarks.peers.tables import format_ratios, group, ratio_frame
from benchmarks.peers.worker import EXAMPLES, Job, Measurement, save_arrays
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import DIGITS, IMAGE_SHAPE, MNIST, Dataset, Split
from mnist_jax.models.flops import multiply_adds, training_flops
from mnist_jax.models.networks import count_params, create_model
from mnist_jax.records.schema import read_jsonl
from mnist_jax.reporting.tables import latest_table

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "peers.jsonl"
KERAS = "keras", "tensorflow"


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
    frame = ratio_frame(races)
    raced = {(race.model, race.batch_size) for race in races}
    assert set(map(tuple, frame[["model", "batch"]].values)) == raced


def test_the_latest_machine_versions_and_code_have_the_table():
    older = [
        record("ours", 1, 0.3, **change)
        for change in ({"device": "another"}, {"packages": ""}, {"code": "new"})
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
    train, test = (
        Split(split.images[:size], split.labels[:size])
        for split, size in ((digits.train, 72), (digits.test, 40))
    )
    return Dataset(train, test, class_names=DIGITS)


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
        "-m",
        "benchmarks.peers.keras_worker",
        *("--model=mlp", "--batch_size=32", "--seed=1", "--steady_epochs=1"),
        *(f"--arrays={tmp_path}", f"--variant={backend}"),
    )
    assert process.returncode == 0, process.stderr
    result = json.loads(process.stdout.splitlines()[-1])
    measurement = Measurement(**result)
    assert len(measurement.epoch_seconds) == 2 and measurement.parameters == 118_282
