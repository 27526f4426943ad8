"""Tests of the peers benchmark: FLOP counts, tables, workers and program."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
from helpers.peer_records import SETUP, record, rounds
from helpers.programs import run_process

from benchmarks.peers import flax_worker, our_worker
from benchmarks.peers.frameworks import FRAMEWORKS, PEAK_CELL, PeerRecord
from benchmarks.peers.tables import (
    best_peer,
    format_ratios,
    format_tables,
    group,
    latest_machine,
    ratio_frame,
    time_frame,
)
from benchmarks.peers.worker import Arrays, Job, Measurement, peer_config, save_arrays
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Dataset
from mnist_jax.models.flops import multiply_adds, training_flops
from mnist_jax.models.networks import count_params, create_model
from mnist_jax.records.schema import append_jsonl, read_jsonl

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "peers.jsonl"


def test_multiply_adds_of_the_three_networks_by_hand():
    assert multiply_adds(peer_config(Job("mlp", 32, 1)), MNIST) == [
        784 * 128,
        128 * 128,
        128 * 10,
    ]
    assert multiply_adds(peer_config(Job("cnn", 32, 1)), MNIST) == [
        26 * 26 * 9 * 1 * 32,
        11 * 11 * 9 * 32 * 64,  # 26 / 2 = 13, 13 - 2 = 11
        3 * 3 * 9 * 64 * 64,  # 11 / 2 = 5, 5 - 2 = 3
        576 * 64,
        64 * 10,
    ]
    assert multiply_adds(peer_config(Job("lstm", 32, 1)), MNIST) == [
        28 * 28 * 512,
        28 * 128 * 512,
        28 * 128 * 512,
        28 * 128 * 512,
        128 * 32,
        32 * 10,
    ]


def test_multiply_adds_of_padding_strides_and_kernels_by_hand():
    config = TrainConfig(
        model="cnn", conv=("4:k5:same:s2", "8:same:pool3"), hidden=(), epochs=1
    )
    assert multiply_adds(config, MNIST) == [
        14 * 14 * 25 * 4,
        14 * 14 * 9 * 4 * 8,
        4 * 4 * 8 * 10,
    ]


def test_training_flops_by_hand():
    # Three matmuls of the forward pass's size per layer, two for the first layer.
    cnn = 6 * (2_230_272 + 331_776 + 36_864 + 640) + 4 * 194_688
    assert training_flops(peer_config(Job("cnn", 128, 1)), MNIST) == cnn == 16_376_064
    assert training_flops(TrainConfig(model="mlp", hidden=()), MNIST) == 4 * 7_840


def test_peers_are_trained_by_plain_adam_at_a_constant_rate():
    for model in ("mlp", "lstm", "cnn"):
        config = peer_config(Job(model, 32, 1))
        assert (config.optimizer, config.schedule) == ("adam", "constant")
        assert (config.learning_rate, config.dropout) == (1e-3, (0.0,))


MADE_UP = [
    *rounds("ours", 0.2, 0.25, 0.2),
    *rounds("torch", 0.6, 0.6, 0.8),
    *rounds("torch_malloc", 0.5, 0.5, 0.45),
    *rounds("keras_tf", 1.4, 1.5),
    *rounds("flax", 0.1, 0.1, 0.1),
]


def test_every_recorded_measurement_decodes():
    records = read_jsonl(PeerRecord, RESULTS)
    assert len(records) == len(RESULTS.read_text().splitlines()) > 0
    found = latest_machine(records)
    frame = ratio_frame(found)
    assert set(map(tuple, frame[["model", "batch"]].values)) == set(group(found))
    assert len(time_frame(found)) == sum(map(len, group(found).values()))


def test_the_latest_machine_versions_and_code_have_the_table():
    older = [
        record("ours", 1, 0.3, run=dataclasses.replace(SETUP, **change))
        for change in ({"device": "another"}, {"versions": {}}, {"code": "new"})
    ]
    latest = [record("ours", 1, 0.3, date="2026-01-02"), record("ours", 2, 0.3)]
    assert latest_machine([*older, *latest]) == latest


def test_records_are_read_as_they_were_written(tmp_path):
    failed = record("torch", 1, 0, result={}, error="no compiler")
    for measured in (MADE_UP[0], failed):
        append_jsonl(tmp_path / "peers.jsonl", measured)
    assert read_jsonl(PeerRecord, tmp_path / "peers.jsonl") == [MADE_UP[0], failed]


def test_speedup_is_of_lower_quartiles_over_the_fastest_peer():
    fastest, installed = ratio_frame(MADE_UP).to_dict("records")
    assert fastest["peer"] == FRAMEWORKS["torch_malloc"].label
    assert fastest["speedup"] == "2.25 [2.00, 2.50]" and fastest["medians"] == "2.50"
    assert fastest["n"] == 9 and fastest["verdict"] == "faster"
    assert installed["peer"] == "PyTorch, as installed"
    assert installed["speedup"].startswith("3.00 [2.40, ")


def test_a_verdict_needs_an_interval_without_one():
    slower = [*rounds("ours", 1.0, 1.0, 1.0), *rounds("torch", 0.8, 0.9, 0.9)]
    unclear = [*rounds("ours", 1.0, 1.0, 1.0), *rounds("torch", 0.8, 1.3, 1.3)]
    verdicts = [ratio_frame(found)["verdict"].item() for found in (slower, unclear)]
    assert verdicts == ["slower", "undecided"]


def test_bfloat16_is_compared_with_bfloat16():
    half = [*rounds("ours_bfloat16", 0.1), *rounds("torch_bfloat16", 0.4)]
    *full, row, own = ratio_frame([*MADE_UP, *half]).to_dict("records")
    assert row["peer"] == "PyTorch + malloc, bfloat16" and row["ours"] == "bfloat16"
    assert row["speedup"] == "4.00 [4.00, 4.00]"
    assert own["peer"] == "ours" and own["speedup"] == "2.00 [2.00, 2.00]"
    assert full == ratio_frame(MADE_UP).to_dict("records")


def test_fastest_peer_is_never_ours_or_the_baseline():
    by_framework = group(MADE_UP)["mlp", 128]
    assert best_peer(by_framework) == "torch_malloc"
    assert best_peer(by_framework, as_installed=True) == "torch"
    assert best_peer({name: by_framework[name] for name in ("ours", "flax")}) is None


def test_rounds_without_both_measurements_do_not_count():
    (row,) = ratio_frame(MADE_UP[1:2] + MADE_UP[3:7]).to_dict("records")
    assert row["speedup"] == "2.40 [2.40, 2.40]"
    assert len(ratio_frame(MADE_UP[3:])) == 0
    assert "no pair to compare" in format_ratios(MADE_UP[3:])


def test_of_a_repeated_round_the_last_measurement_counts():
    again = [*rounds("ours", 1.0), *rounds("torch", 1.0)]
    (row,) = ratio_frame([*rounds("ours", 0.5), *again]).to_dict("records")
    assert row["speedup"] == "1.00 [1.00, 1.00]"


def test_tables_show_time_peak_accuracy_and_failures():
    peaks = {"numpy": 200.0, "xla": 300.0}
    peak = record(**PEAK_CELL._asdict(), number=1, seconds=0, result=peaks)
    failed = record("torch_compile", 1, 0, result={}, error="no compiler")
    text = format_tables([*MADE_UP, peak, failed])
    assert "300 GFLOP/s" in text and "0.9700 ± 0.0000 (n=3)" in text
    (ours,) = [
        line
        for line in text.splitlines()
        if line.startswith("| mlp") and "| ours " in line
    ]
    # 507,392 FLOPs x 60,000 images in 0.2 s, of 300 GFLOP/s.
    assert " 50.7 |" in ours and "0.200 [0.200, 0.250] (n=9)" in ours
    assert "- **failed**: torch_compile mlp 128: no compiler" in text
    again = format_tables([*MADE_UP, failed, record("torch_compile", 1, 0.5)])
    assert "failed" not in again and "peak: not measured" in again
    assert "nothing was measured" in format_tables([failed])
    assert "nothing was measured" in format_ratios([failed])


def test_speedups_fit_a_page_and_are_explained():
    text = format_ratios(read_jsonl(PeerRecord, RESULTS))
    assert max(len(line) for line in text.splitlines() if line[:1] == "|") <= 110
    assert "95 % bootstrap interval" in text
    assert "s/epoch" not in text and "target" not in text


@pytest.fixture(scope="module")
def toy(digits: Dataset) -> Arrays:
    """72 of the small digits: two batches of 32 and a last one of 8."""
    train, test = digits.train, digits.test
    return Arrays(
        train.images[:72], train.labels[:72], test.images[:40], test.labels[:40]
    )


def check(measurement: Measurement, job: Job) -> None:
    assert len(measurement.epoch_seconds) == job.epochs
    assert all(seconds > 0 for seconds in measurement.epoch_seconds)
    assert 0 <= measurement.test_accuracy <= 1
    biases = 1024 if "Adam" in measurement.form and job.model == "lstm" else 0
    parameters = count_params(create_model(peer_config(job), MNIST), IMAGE_SHAPE)
    assert measurement.parameters == parameters + biases


@pytest.mark.parametrize(
    ("model", "batch_size"), [("mlp", 32), ("lstm", 72), ("cnn", 72)]
)
def test_plain_flax_trains_every_network(model, batch_size, toy):
    job = Job(model, batch_size, steady_epochs=1)
    check(flax_worker.measure(job, toy), job)


def test_ours_trains_through_fit(toy):
    job = Job("mlp", batch_size=32, steady_epochs=2, seed=3)
    check(our_worker.measure(job, toy), job)


@pytest.mark.parametrize(
    ("model", "variant"),
    [
        ("mlp", "eager"),
        ("lstm", "eager"),
        ("cnn", "eager"),
        ("cnn", "channels_last"),
        ("cnn", "bfloat16"),
    ],
)
def test_torch_trains_every_network(model, variant, toy):
    pytest.importorskip("torch", reason="`make peers` has PyTorch")
    from benchmarks.peers import torch_worker

    job = Job(model, batch_size=32, steady_epochs=1, variant=variant)
    check(torch_worker.measure(job, toy), job)


def run_worker(module: str, arrays: Arrays, folder: Path, *flags: str) -> dict:
    save_arrays(arrays, folder)
    process = run_process(
        f"benchmarks.peers.{module}",
        "--model=mlp",
        "--batch_size=32",
        "--seed=1",
        f"--arrays={folder}",
        "--steady_epochs=1",
        *flags,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.parametrize("variant", ["tensorflow", "jax"])
def test_keras_worker_trains(variant, toy, tmp_path):
    if not all(map(importlib.util.find_spec, ("keras", "tensorflow"))):
        pytest.skip("`make peers` has Keras with TensorFlow")
    result = run_worker("keras_worker", toy, tmp_path, f"--variant={variant}")
    assert len(result["epoch_seconds"]) == 2 and result["parameters"] == 118_282


def test_our_worker_ends_with_a_line_of_json(toy, tmp_path):
    result = run_worker("our_worker", toy, tmp_path)
    assert set(result) == {*Measurement._fields, "peak_rss_mb"}
    assert len(result["epoch_seconds"]) == 2
