"""Sweeps that are stopped in the middle of a run resume there and repeat nothing."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.runs import CONFIG, epochs_of, follow_until, outcomes, prepare_once

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.records.environment import current_environment
from mnist_jax.records.files import hold_lock
from mnist_jax.records.schema import RunRecord, read_json, read_jsonl, write_json
from mnist_jax.training import run_dir, runs
from mnist_jax.training.run_dir import (
    RECORD,
    export_runs,
    find_runs,
    load_run,
    run_folders,
)
from mnist_jax.training.runs import train_runs

RESULTS = "compare.jsonl"


@pytest.fixture
def train(digits: Dataset) -> Callable[..., list[int]]:
    """Returns a function that trains the missing seeds as compare does."""

    def train(
        out: Path, seeds: int = 2, stop: int = 0, config: TrainConfig = CONFIG
    ) -> list[int]:
        """Trains, stopping after epoch `stop` if not 0; returns the epochs run."""
        chosen = range(config.seed, config.seed + seeds)
        folders = run_folders(out, config, digits, chosen)
        events = follow_until(
            train_runs(config, digits, folders, prepare_runs=prepare_once),
            stop,
        )
        print(*(event for event in events if isinstance(event, str)), sep="\n")
        export_runs(out, RESULTS)
        return [epoch for _, epoch in epochs_of(events)]

    return train


def checkpoints(out: Path) -> list[Path]:
    return sorted(out.rglob("checkpoints/*.msgpack"))


def test_a_stopped_sweep_resumes_and_ends_like_an_unstopped_one(
    train, tmp_path, capsys
):
    alone, halves = tmp_path / "alone", tmp_path / "halves"
    assert train(alone) == [1, 2, 3]
    assert train(halves, stop=2) == [1, 2]
    assert len(checkpoints(halves)) == 2 and not list(halves.rglob(RECORD))
    assert train(halves) == [3]
    assert "mlp: resuming after epoch 2\n" in capsys.readouterr().out
    assert outcomes(halves) == outcomes(alone)
    assert not checkpoints(halves)
    assert train(halves) == [] and len(outcomes(halves)) == 2


def test_a_sweep_killed_between_its_records_writes_the_rest(
    train, tmp_path, monkeypatch
):
    alone, halves = tmp_path / "alone", tmp_path / "halves"
    train(alone, seeds=3)

    def kill(path: Path, value: object) -> None:
        write_json(path, value)
        if path.name == RECORD:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_json", kill)
        with pytest.raises(KeyboardInterrupt):
            train(halves, seeds=3)
    assert len(outcomes(halves)) == 1
    assert train(halves, seeds=3) == []  # no epoch is run again
    assert outcomes(halves) == outcomes(alone)
    assert not checkpoints(halves)


def test_checkpoints_of_other_code_are_not_used(train, tmp_path, monkeypatch):
    train(tmp_path, stop=2)
    monkeypatch.setattr(runs, "code_digest", lambda: "another")
    assert train(tmp_path) == [1, 2, 3]


def test_damaged_checkpoints_are_named_and_the_sweep_starts_over(
    train, tmp_path, caplog, capsys
):
    alone, halves = tmp_path / "alone", tmp_path / "halves"
    train(alone)
    train(halves, stop=2)
    paths = checkpoints(halves)
    for path in paths:
        path.write_bytes(path.read_bytes()[:-100])
    assert train(halves, stop=1) == [1]
    assert "starting from the beginning" in capsys.readouterr().out
    # The earlier run's later checkpoints, which would be the newest, are gone.
    assert {path.name for path in checkpoints(halves)} == {"epoch00001.msgpack"}
    for path in paths:
        assert f"{path} is not used: it is damaged" in caplog.text
    assert train(halves) == [2, 3]
    assert outcomes(halves) == outcomes(alone)


def test_a_damaged_record_is_named_and_its_run_trained_again(train, tmp_path, caplog):
    train(tmp_path)
    before = outcomes(tmp_path)
    [record] = tmp_path.glob("runs/*/seed1/record.json")
    record.write_bytes(record.read_bytes()[:500])
    (tmp_path / RESULTS).unlink()
    assert train(tmp_path) == [1, 2, 3]
    assert f"{record} is damaged" in caplog.text
    after = outcomes(tmp_path)
    assert [run[4] for run in after] == [2, 1]  # the second alone: other rounding
    assert after[0] == before[0] and after[1][3] == pytest.approx(before[1][3], abs=0.1)


def test_two_processes_never_train_the_same_run(train, tmp_path, digits):
    alone, both = tmp_path / "alone", tmp_path / "both"
    train(alone)
    folders = run_folders(both, CONFIG, digits, [0, 1])
    root, events = folders[0].parent, train_runs(CONFIG, digits, folders)
    with hold_lock(folders[1] / ".lock"):
        waiting = "mlp: waiting for another process that trains these runs"
        assert [next(events) for _ in range(3)] == [waiting, None, None]
        [trained] = (alone / "runs").iterdir()
        shutil.copytree(trained, root, dirs_exist_ok=True)
    assert not epochs_of(events)  # the first process has recorded the runs
    assert outcomes(both) == outcomes(alone)


def test_the_export_has_all_runs_oldest_first(train, tmp_path):
    train(tmp_path, seeds=1, config=dataclasses.replace(CONFIG, seed=1))
    train(tmp_path, seeds=2)
    exported = read_jsonl(RunRecord, tmp_path / RESULTS)
    assert [run.config.seed for run in exported] == [1, 0]
    assert exported == list(find_runs(tmp_path).values())


def test_recorded_runs_are_identified_by_everything_that_determines_them(
    digits, tmp_path, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", "")
    machine = current_environment()
    monkeypatch.setattr(run_dir, "current_environment", lambda: machine)

    def folder(config=CONFIG, dataset=digits, system=None):
        """Returns the digest in the folder's name."""
        folders = run_folders(tmp_path, config, dataset, [0], system)
        return folders[0].parent.name.rpartition("-")[2]

    here = folder()
    assert folder(dataclasses.replace(CONFIG, seed=5)) == here
    others = [
        folder(dataclasses.replace(CONFIG, epochs=6)),
        folder(dataset=dataclasses.replace(digits, validation=digits.test)),
        folder(system="av_dnn"),
    ]
    for name, value in (("device", "another"), ("cores", 99), ("jax", "another")):
        changed = dataclasses.replace(machine, **{name: value})
        monkeypatch.setattr(run_dir, "current_environment", lambda value=changed: value)
        others.append(folder())
    assert len({here, *others}) == 1 + len(others)


def test_a_record_of_another_key_is_replaced(train, tmp_path):
    train(tmp_path)
    [folder] = tmp_path.glob("runs/*/seed1")
    record = read_json(RunRecord, folder / RECORD)
    for field in ("checksum", "source_sha256", "start_sha256"):
        write_json(folder / RECORD, dataclasses.replace(record, **{field: "another"}))
        assert train(tmp_path) == [1, 2, 3]
    assert train(tmp_path) == []


def test_a_run_is_loaded_with_everything_that_prediction_needs(digits, tmp_path, train):
    config = dataclasses.replace(CONFIG, pixels="standardized", epochs=1)
    train(tmp_path, seeds=1, config=config)
    [folder] = tmp_path.glob("runs/*/seed0")
    run = load_run(folder)
    probabilities = run.predict(digits.test.images)
    assert probabilities.shape == (360, 10)
    accuracy = (probabilities.argmax(axis=1) == digits.test.labels).mean()
    assert accuracy == pytest.approx(run.record.test_accuracy)
    assert run.config == config and run.preprocess.mean == run.record.pixel_mean > 0
