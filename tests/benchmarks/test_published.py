"""Tests of the published systems: presets, the runner, verdicts and claims."""

import dataclasses

import pytest
from helpers.programs import run
from helpers.records import make_epochs, make_record

from benchmarks.published.__main__ import by_system, systems_frame
from benchmarks.published.claims import claims_frame
from benchmarks.published.systems import CONTROLS, PRESETS, SYSTEMS, read_preset
from mnist_jax.data.types import IMAGE_SHAPE, MNIST
from mnist_jax.models.networks import count_params, create_model
from mnist_jax.records.schema import RunRecord, read_jsonl

COUNTS = {
    "av_dnn": 118_282,
    "av_lstm": 216_426,
    "av_cnn": 542_230,
    "ml10_mlp_raw": 25_450,
    "ml10_mlp": 25_450,
    "ml10_mlp_fresh": 25_450,
    "ml10_cnn": 93_322,
    "fj_fc": 443_610,
    "fj_cnn_pool": 20_490,
    "fj_cnn_stride": 20_490,
    "cv_cnn": 13_610,
}


def test_every_system_has_a_preset_and_every_preset_a_system():
    assert {path.stem for path in PRESETS.glob("*.cfg")} == set(SYSTEMS) == set(COUNTS)


@pytest.mark.parametrize("name", SYSTEMS)
def test_preset_builds_the_published_network(name):
    config, start = read_preset(name)
    assert count_params(create_model(config, MNIST), IMAGE_SHAPE) == COUNTS[name]
    assert SYSTEMS[name].parameters in ("-", f"{COUNTS[name]:,}")
    assert start == ("ml10_mlp_raw" if name == "ml10_mlp" else None)
    assert config.dataset == "mnist" and config.schedule == "constant"
    assert config.learning_rate == 1e-3
    sgd = name == "fj_fc"
    assert config.optimizer == ("sgd" if sgd else "keras_adam")
    shuffled = "shuffled", 0
    assert ((config.split, config.split_seed) == shuffled) == name.startswith("ml10")
    assert config.batch_size == (128 if name.startswith("fj") else 32)
    header = (PRESETS / f"{name}.cfg").read_text()
    for text in ('# Source: "', SYSTEMS[name].accuracy, f"--preset={name}"):
        assert text in header


def with_seconds(record, *seconds):
    """Returns a record with the given training seconds per epoch."""
    epochs = [
        dataclasses.replace(epoch, train_seconds=time)
        for epoch, time in zip(make_epochs(len(seconds)), seconds, strict=True)
    ]
    return dataclasses.replace(record, epochs=epochs)


def make_runs(accuracies, seconds=1.0):
    """Returns records of one system by seed, one per accuracy."""
    runs = {}
    for seed, accuracy in enumerate(accuracies):
        steady = seconds + 0.01 * seed
        record = with_seconds(make_record(seed=seed, accuracy=accuracy), 9.0, steady)
        runs[seed] = dataclasses.replace(
            record, parameters=1000, steady_epoch_seconds=steady
        )
    return runs


def change(runs, name, **changes):
    """Changes fields of all records of a system."""
    for seed, record in runs[name].items():
        runs[name][seed] = dataclasses.replace(record, **changes)


def test_verdicts_follow_the_prediction_interval():
    def verdict(*accuracies):
        return systems_frame({"av_dnn": make_runs(accuracies)})["verdict"].item()

    assert verdict(0.9720, 0.9725, 0.9718) == "agrees"  # published: 0.9721
    assert verdict(0.9801, 0.9802, 0.9803) == "below"
    assert verdict(0.9601, 0.9602, 0.9603) == "above"
    assert verdict(0.9721) == "undecided at n = 1"


def verdicts(runs):
    """Returns the verdicts of the claims that the runs can test."""
    frame = claims_frame(runs)
    frame = frame[frame["verdict"] != "not tested"]
    return dict(zip(frame["claim"], frame["verdict"], strict=True))


def test_claims_hold_fail_or_stay_undecided():
    runs = {
        "av_lstm": make_runs([0.99, 0.991, 0.992], 3.0),
        "av_cnn": make_runs([0.98, 0.982, 0.981], 2.0),
        "av_dnn": make_runs([0.97, 0.972, 0.971], 1.0),
    }
    got = verdicts(runs)
    assert got["accuracy: LSTM > CNN > DNN after 5 epochs"] == "holds"
    assert got["DNN trains fastest, LSTM slowest"] == "holds"
    runs["av_dnn"] = make_runs([0.98, 0.983, 0.980], 4.0)
    got = verdicts(runs)
    assert got["accuracy: LSTM > CNN > DNN after 5 epochs"] == "undecided"
    assert got["DNN trains fastest, LSTM slowest"] == "does not hold"
    change(runs, "av_cnn", parameters=5000)
    got = verdicts(runs)
    assert got['"CNN requires fewer parameters"'] == "does not hold"
    assert got['"DNN requires the most parameters"'] == "does not hold"


def test_runs_of_one_epoch_have_no_steady_seconds():
    runs = {name: make_runs([0.9, 0.91]) for name in ("fj_fc", "fj_cnn_stride")}
    faster = "the fully connected net trains faster (as published)"
    assert faster in verdicts(runs)
    one = runs["fj_fc"][0].epochs[:1]
    change(runs, "fj_fc", steady_epoch_seconds=None, epochs=one)
    assert systems_frame(runs)["s/epoch ours"].tolist() == ["-", "1.00"]
    assert faster not in verdicts(runs)


def test_epochs_of_seeds_trained_together_count_once():
    runs = {name: make_runs([0.9] * 5) for name in ("fj_fc", "fj_cnn_stride")}

    def take(name, *seconds):
        change(runs, name, epochs=with_seconds(make_record(), *seconds).epochs)

    take("fj_fc", 9.0, 1.0, 1.2)
    take("fj_cnn_stride", 9.0, 1.3, 1.5)
    faster = "the fully connected net trains faster (as published)"
    assert verdicts(runs)[faster] == "undecided"
    take("fj_cnn_stride", 9.0, 10.3, 10.5)
    assert verdicts(runs)[faster] == "holds"


def test_every_claim_is_tested_once_all_systems_have_run():
    runs = {name: make_runs([0.9, 0.91]) for name in [*SYSTEMS, *CONTROLS]}
    assert "not tested" not in set(claims_frame(runs)["verdict"])
    assert set(claims_frame({})["verdict"]) == {"not tested"}


@pytest.mark.programs
def test_runner_chains_warm_starts_resumes_and_writes_tables(tmp_path):
    command = "benchmarks.published", "--dataset=digits", "--epochs=2", "--seeds=2"
    first = run(*command, f"--out={tmp_path}", "--systems=ml10_mlp")
    # The run that provides its initial parameters comes first.
    assert first.stdout.index("ml10_mlp_raw\nmlp:") < first.stdout.index("mlp\nmlp:")
    assert "2 seeds together" in first.stdout
    records = read_jsonl(RunRecord, tmp_path / "published.jsonl")
    starts = [record.start_sha256 for record in records]
    assert starts == [None, None, *(record.params_sha256 for record in records[:2])]
    assert set(by_system(records)) == {"ml10_mlp_raw", "ml10_mlp"}
    again = run(*command, f"--out={tmp_path}", "--systems=ml10_mlp,cv_cnn")
    assert "ml10_mlp, seed 1: already recorded\n" in again.stdout
    assert "\ncv_cnn\n" in again.stdout
    assert len((tmp_path / "published.jsonl").read_text().splitlines()) == 6
    markdown = (tmp_path / "published.md").read_text()
    assert "0.9533" in markdown and "rescaling the pixels" in markdown
