"""The side-by-side benchmark: its operation counts, its verdicts and its workers."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.peers import flax_worker as peer_flax
from benchmarks.peers import our_worker as peer_ours
from benchmarks.peers import race as peers
from benchmarks.peers.worker import Arrays, Job, Measurement, peer_config
from mnist_jax.config import TrainConfig
from mnist_jax.data.datasets import Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.flops import multiply_adds, training_flops
from mnist_jax.models.networks import count_params, create_model

ROOT = Path(__file__).parents[2]


def test_multiply_adds_of_the_three_networks_by_hand():
    assert multiply_adds(peer_config(Job("mlp", 32, 1))) == [
        784 * 128,
        128 * 128,
        128 * 10,
    ]
    assert multiply_adds(peer_config(Job("cnn", 32, 1))) == [
        26 * 26 * 9 * 1 * 32,
        11 * 11 * 9 * 32 * 64,  # 26 / 2 = 13, 13 - 2 = 11
        3 * 3 * 9 * 64 * 64,  # 11 / 2 = 5, 5 - 2 = 3
        576 * 64,
        64 * 10,
    ]
    assert multiply_adds(peer_config(Job("lstm", 32, 1))) == [
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
    assert multiply_adds(config) == [
        14 * 14 * 25 * 4,
        14 * 14 * 9 * 4 * 8,
        4 * 4 * 8 * 10,
    ]


def test_training_flops_by_hand():
    # Three products of the forward pass's size, two of them for the first layer.
    cnn = 6 * (2_230_272 + 331_776 + 36_864 + 640) + 4 * 194_688
    assert training_flops(peer_config(Job("cnn", 128, 1))) == cnn == 16_376_064
    assert training_flops(TrainConfig(model="mlp", hidden=())) == 4 * 7_840


def record(
    framework: str, number: int, seconds: float, model: str = "mlp", **changes
) -> dict:
    """Returns a made-up measurement whose steady epochs have the given median."""
    return {
        "round": number,
        "framework": framework,
        "model": model,
        "batch_size": 128,
        "run": {
            "code": "c0de",
            "device": "made up",
            "cores": 2,
            "versions": {"jax": "1"},
            "dataset": "mnist",
            "checksum": "0",
            "train_images": 60_000,
            "steady_epochs": 3,
        },
        "environment": {"commit": "abc", "dirty": False, "device": "made up"},
        "date": "2026-01-01",
        "load": 0.1,
        "others_cores": 0.0,
        "disturbed": False,
        "wall_seconds": 5.0,
        "result": {
            "epoch_seconds": [9.0, seconds, seconds - 0.01, seconds + 5.0],
            "test_accuracy": 0.97,
            "parameters": 118_282,
            "form": "made up",
            "peak_rss_mb": 400,
        },
        **changes,
    }


def rounds(framework: str, *seconds: float) -> list[dict]:
    return [record(framework, number, s) for number, s in enumerate(seconds, 1)]


MADE_UP = [
    *rounds("ours", 0.2, 0.25, 0.2),
    *rounds("torch", 0.6, 0.6, 0.8),
    *rounds("torch_malloc", 0.5, 0.5, 0.45),
    *rounds("keras_tf", 1.4, 1.5),
    *rounds("flax", 0.1, 0.1, 0.1),
]


def test_ratio_is_of_each_round_and_against_the_fastest_peer():
    row = peers.ratio_frame(MADE_UP).iloc[0]
    assert row["fastest peer"] == peers.FRAMEWORKS["torch_malloc"].label
    assert row["times faster"] == "2.25 [2.00, 2.50] (n=3)"
    assert row["target"] == "2.5" and row["verdict"] == "not met"
    assert row["fastest as installed"] == peers.FRAMEWORKS["torch"].label
    assert row["times faster than that"] == "3.00 [2.40, 4.00] (n=3)"


def test_verdict_follows_the_median():
    faster = [*rounds("ours", 0.2, 0.1, 0.1), *MADE_UP[3:]]
    assert peers.ratio_frame(faster).iloc[0]["verdict"] == "met"
    assert peers.verdict("mlp", 7, [9.0]) == "no target"


def test_rounds_that_lack_one_of_both_do_not_count():
    (row,) = peers.ratio_frame(MADE_UP[1:2] + MADE_UP[3:6]).to_dict("records")
    assert row["times faster"] == "2.40 [2.40, 2.40] (n=1)"
    assert len(peers.ratio_frame(MADE_UP[3:])) == 0


def test_slow_rows_are_left_out_after_two_rounds_and_ours_never():
    by_framework = peers.group(MADE_UP)["mlp", 128]
    assert peers.is_slow("keras_tf", by_framework, 2, 1.3)
    assert not peers.is_slow("keras_tf", by_framework, 3, 1.3)
    assert not peers.is_slow("torch_malloc", by_framework, 2, 1.3)
    assert not peers.is_slow("flax", by_framework, 2, 1.3)
    slow = {**by_framework, "ours": rounds("ours", 9.0, 9.0)}
    assert not peers.is_slow("ours", slow, 2, 1.3)


def test_tables_show_time_peak_accuracy_and_failures():
    peak = record("matmul", 1, 0, model="", result={"numpy": 200.0, "xla": 300.0})
    failed = record("torch_compile", 1, 0, error="no compiler")
    del failed["result"]
    text = peers.format_tables([*MADE_UP, peak, failed])
    assert "300 GFLOP/s" in text and "0.9700 ± 0.0000 (n=3)" in text
    (ours,) = [line for line in text.splitlines() if "| ours " in line]
    # 507,392 operations x 60,000 images in 0.2 s at 300 GFLOP/s.
    assert "| 50.7 " in ours and "0.200 [0.200, 0.250] (n=3)" in ours
    assert "**failed**: torch_compile mlp 128: no compiler" in text
    again = peers.format_tables([*MADE_UP, failed, record("torch_compile", 1, 0.5)])
    assert "failed" not in again
    assert "nothing was measured" in peers.format_tables([failed])


def test_disturbed_measurements_do_not_count():
    disturbed = record("torch_malloc", 4, 0.001, disturbed=True)
    (row,) = peers.ratio_frame([*MADE_UP, disturbed]).to_dict("records")
    assert row["times faster"] == "2.25 [2.00, 2.50] (n=3)"
    text = peers.format_tables([*MADE_UP, disturbed])
    assert "1 measurements that others disturbed are left out" in text


@pytest.fixture(scope="module")
def toy(digits: Dataset) -> Arrays:
    """The small digits, few of them: two batches of 32 and a last one of 8."""
    train, test = digits.train, digits.test
    return Arrays(
        train.images[:72], train.labels[:72], test.images[:40], test.labels[:40]
    )


def check(measurement: Measurement, job: Job) -> None:
    assert len(measurement.epoch_seconds) == job.epochs
    assert all(seconds > 0 for seconds in measurement.epoch_seconds)
    assert 0 <= measurement.test_accuracy <= 1
    biases = 1024 if "Adam" in measurement.form and job.model == "lstm" else 0
    parameters = count_params(create_model(peer_config(job)))
    assert measurement.parameters == parameters + biases


@pytest.mark.parametrize(
    ("model", "batch_size"), [("mlp", 32), ("lstm", 72), ("cnn", 72)]
)
def test_plain_flax_trains_every_network(model, batch_size, toy):
    job = Job(model, batch_size, steady_epochs=1)
    check(peer_flax.measure(job, toy), job)


def test_plain_flax_starts_its_lstm_as_keras_does():
    images = np.zeros((1, 28, 28), np.float32)
    params = peer_flax.init_params(peer_flax.LSTM(), jax.random.key(0), images)
    for number, inputs in enumerate((28, 128)):
        cell = params[f"OptimizedLSTMCell_{number}"]
        kernel = np.concatenate([cell[f"i{gate}"]["kernel"] for gate in "ifgo"], axis=1)
        limit = np.sqrt(6 / (inputs + 512))  # Glorot's, of the whole kernel
        assert kernel.shape == (inputs, 512)
        assert 0.99 * limit < np.abs(kernel).max() <= limit
        recurrent = [cell[f"h{gate}"]["kernel"] for gate in "ifgo"]
        recurrent = np.concatenate(recurrent, axis=1)
        np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(128), atol=1e-5)
        biases = [cell[f"h{gate}"]["bias"] for gate in "ifgo"]
        np.testing.assert_array_equal(biases, np.outer([0, 1, 0, 0], np.ones(128)))


def test_ours_trains_through_fit(toy):
    job = Job("mlp", batch_size=32, steady_epochs=2, seed=3)
    check(peer_ours.measure(job, toy), job)


@pytest.mark.parametrize(
    ("model", "variant"),
    [("mlp", "eager"), ("lstm", "eager"), ("cnn", "eager"), ("cnn", "channels_last")],
)
def test_torch_trains_every_network(model, variant, toy):
    pytest.importorskip("torch", reason="`make peers` has PyTorch")
    from benchmarks.peers import torch_worker as peer_torch

    job = Job(model, batch_size=32, steady_epochs=1, variant=variant)
    check(peer_torch.measure(job, toy), job)


@pytest.mark.parametrize("variant", ["tensorflow", "jax"])
def test_keras_worker_answers(variant):
    if not all(map(importlib.util.find_spec, ("keras", "tensorflow"))):
        pytest.skip("`make peers` has Keras with TensorFlow")
    answer = run_worker("peer_keras", f"--variant={variant}")
    assert len(answer["epoch_seconds"]) == 2 and answer["parameters"] == 118_282


def run(*arguments: object, ok: bool = True):
    """Runs a program on the digits and returns its finished process."""
    process = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "MNIST_JAX_DATA_DIR": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (process.returncode == 0) == ok, process.stdout + process.stderr
    assert "Traceback" not in process.stderr, process.stderr
    return process


def run_worker(module: str, *flags: str) -> dict:
    process = run(
        f"benchmarks.{module}",
        "--dataset=digits",
        "--train_size=64",
        "--batch_size=32",
        "--steady_epochs=1",
        *flags,
    )
    return json.loads(process.stdout.splitlines()[-1])


def test_peers_end_to_end_and_on_where_it_was(tmp_path):
    command = (
        "benchmarks.peers",
        "--dataset=digits",
        "--models=mlp",
        "--batches=32",
        "--train_size=72",
        "--steady_epochs=1",
        "--rounds=1",
        "--others_limit=99",
        f"--out={tmp_path}",
    )
    results = tmp_path / "peers.jsonl"
    process = run(*command, "--frameworks=ours")
    assert "round 1/1  mlp    32 ours" in process.stdout
    before = results.read_text()
    process = run(*command, "--frameworks=ours,flax")
    assert results.read_text().startswith(before)
    assert " flax " in process.stdout and "1/1  mlp    32 ours" not in process.stdout

    peak, *measured = map(json.loads, results.read_text().splitlines())
    assert peak["framework"] == "matmul" and min(peak["result"].values()) > 0
    assert [record["framework"] for record in measured] == ["ours", "flax"]
    for record in measured:
        assert set(record["result"]) == {*Measurement._fields, "peak_rss_mb"}
        assert 50 < record["result"]["peak_rss_mb"] < 5000
    assert (tmp_path / "peers.md").read_text().strip() in process.stdout
    assert len((tmp_path / "peers.csv").read_text().splitlines()) == 3


BAD_FLAGS = {
    "--frameworks=theano": "--frameworks must be some of ours, torch",
    "--models=vit": "--models must be some of mlp, lstm, cnn; got vit",
    "--batches=0": "--batches must be whole numbers from 1; got 0",
    "--train_size=9999": "to the 1437 training images; got 9999",
}


@pytest.mark.parametrize("flag", BAD_FLAGS)
def test_bad_input_is_one_sentence(flag, tmp_path):
    arguments = ("--frameworks=ours", "--dataset=digits", f"--out={tmp_path}")
    process = run("benchmarks.peers", *arguments, flag, ok=False)
    assert BAD_FLAGS[flag] in process.stderr
    assert not list(tmp_path.iterdir())


def test_a_missing_framework_is_named_with_the_way_to_get_it(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in ("torch", "tensorflow") else found(name),
    )
    with pytest.raises(InputError, match="make peers.*--frameworks=ours,flax"):
        peers.choose_frameworks(["ours", "torch", "keras_tf", "flax"])
