"""Runs that stop and go on: checkpoints, what damages them, kills and signals."""

import dataclasses
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import msgpack
import pytest
from test_checkpoint import nested
from test_programs import ROOT, run

from mnist_jax.config import TrainConfig, default_config
from mnist_jax.data import array_cache as cache
from mnist_jax.data.datasets import Dataset
from mnist_jax.errors import InputError, Stopped
from mnist_jax.models.networks import create_model
from mnist_jax.records.schema import RunRecord
from mnist_jax.training import fit
from mnist_jax.training.checkpoints import FOLDER, load_snapshot
from mnist_jax.training.epochs import make_mesh
from mnist_jax.training.experiment import Experiment, prepare
from mnist_jax.training.run_dir import METRICS, fit_into, read_params, resume_snapshot

CONFIGS = {
    name: default_config(
        name, dataset="digits", epochs=3, hidden=(16,), batch_size=256, **more
    )
    for name, more in (
        ("mlp", {}),
        ("lstm", dict(lstm_units=(16,), dropout=(0.2,))),
        ("cnn", dict(conv=("8:pool2",))),
    )
}


def outcome(record: RunRecord, folder: Path) -> tuple:
    """Returns what must not depend on stops: all but times."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    for line in lines:
        del line["train_seconds"], line["eval_seconds"]
    return record.params_sha256, record.test_accuracy, record.test_loss, lines


def go_on(experiment: Experiment, folders: dict[int, Path]) -> list[RunRecord]:
    """Resumes runs and trains to their end."""
    finished, snapshot = resume_snapshot(folders, experiment.config)
    assert not finished and snapshot is not None
    return fit_into(
        experiment,
        folders,
        lambda epochs: None,
        checkpoint_every=1,
        resume=snapshot,
    )


@pytest.mark.parametrize("name, devices", [(n, d) for n in CONFIGS for d in (1, 2)])
def test_a_stopped_run_goes_on_bit_for_bit(name, devices, digits: Dataset, tmp_path):
    experiment = prepare(CONFIGS[name], digits, mesh=make_mesh(devices))
    whole, halves = {5: tmp_path / "whole"}, {5: tmp_path / "halves"}
    [want] = fit_into(experiment, whole, lambda epochs: None)

    def stop(epochs):
        if epochs[0].epoch == 2:
            raise Stopped(2, "")

    with pytest.raises(Stopped):
        fit_into(experiment, halves, stop, checkpoint_every=1)
    [got] = go_on(experiment, halves)
    assert outcome(got, halves[5]) == outcome(want, whole[5])
    assert resume_snapshot(halves, experiment.config) == (True, None)


def stopped_run(
    digits: Dataset, folder: Path, config: TrainConfig = CONFIGS["mlp"], keep: int = 3
) -> Experiment:
    """Leaves a run that stopped after its third epoch of four."""
    experiment = prepare(dataclasses.replace(config, epochs=4), digits)

    def stop(epochs):
        if epochs[0].epoch == 3:
            raise Stopped(2, "")

    with pytest.raises(Stopped):
        fit_into(experiment, {0: folder}, stop, checkpoint_every=1, keep=keep)
    return experiment


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / FOLDER).iterdir())


def test_only_the_newest_checkpoints_stay_and_a_new_run_removes_them(digits, tmp_path):
    experiment = stopped_run(digits, tmp_path, keep=2)
    assert names(tmp_path) == ["epoch00002.msgpack", "epoch00003.msgpack"]
    fit_into(experiment, {0: tmp_path}, lambda epochs: None)
    assert names(tmp_path) == []


def test_the_last_epoch_has_a_checkpoint_so_that_a_run_can_be_prolonged(
    digits, tmp_path
):
    fit_into(
        prepare(CONFIGS["mlp"], digits),
        {0: tmp_path},
        lambda epochs: None,
        checkpoint_every=2,
    )
    assert names(tmp_path) == ["epoch00002.msgpack", "epoch00003.msgpack"]


def test_epochs_after_the_checkpoint_are_run_again(digits, tmp_path):
    experiment = stopped_run(digits, tmp_path)
    (tmp_path / FOLDER / "epoch00003.msgpack").unlink()
    told = []
    _, snapshot = resume_snapshot({0: tmp_path}, experiment.config)
    fit_into(experiment, {0: tmp_path}, told.extend, resume=snapshot)
    assert [record.epoch for record in told] == [3, 4]
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


def test_the_total_of_a_resumed_run_is_the_sum_over_its_parts(
    digits, tmp_path, monkeypatch
):
    experiment = stopped_run(digits, tmp_path)
    _, snapshot = resume_snapshot({0: tmp_path}, experiment.config)
    before = [
        record.train_seconds + record.eval_seconds for record in snapshot.histories[0]
    ]
    assert len(before) == 3 and min(before) > 0
    # Each time that the clock is asked, another hour has passed.
    hours = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: 3600.0 * next(hours))
    monkeypatch.setattr(fit, "time", clock)
    [record] = fit_into(experiment, {0: tmp_path}, lambda epochs: None, resume=snapshot)
    # Its first answer was 0.
    rest = 3600 * (next(hours) - 1) + experiment.compile_seconds
    assert record.total_seconds == pytest.approx(sum(before) + rest, abs=1e-6)


def test_a_prolonged_run_that_stops_is_not_taken_for_finished(digits, tmp_path):
    fit_into(prepare(CONFIGS["mlp"], digits), {0: tmp_path}, lambda epochs: None)
    assert resume_snapshot({0: tmp_path}, CONFIGS["mlp"]) == (True, None)
    shutil.rmtree(tmp_path / FOLDER, ignore_errors=True)
    before = (tmp_path / "record.json").read_bytes()
    experiment = stopped_run(digits, tmp_path / "other")
    shutil.copytree(tmp_path / "other" / FOLDER, tmp_path / FOLDER)
    shutil.copy(tmp_path / "other" / "config.json", tmp_path)
    assert (tmp_path / "record.json").read_bytes() == before
    finished, snapshot = resume_snapshot({0: tmp_path}, experiment.config)
    assert not finished and snapshot.epoch == 3


def flip(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


DAMAGES = {
    "flipped": flip,
    "truncated": lambda content: content[:-100],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    damage, digits, tmp_path, caplog
):
    experiment = stopped_run(digits, tmp_path)
    newest = tmp_path / FOLDER / "epoch00003.msgpack"
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    _, snapshot = resume_snapshot({0: tmp_path}, experiment.config)
    assert snapshot.epoch == 2
    assert str(newest) in caplog.text and "damaged" in caplog.text
    for path in {*(tmp_path / FOLDER).iterdir()} - {newest}:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    with pytest.raises(InputError, match="no checkpoint in .* is sound"):
        resume_snapshot({0: tmp_path}, experiment.config)


def test_a_checkpoint_that_cannot_be_read_is_named_and_the_one_before_used(
    digits, tmp_path, caplog
):
    experiment = stopped_run(digits, tmp_path)
    newest = tmp_path / FOLDER / "epoch00003.msgpack"
    newest.unlink()
    newest.mkdir()  # whose content even root cannot read
    assert resume_snapshot({0: tmp_path}, experiment.config)[1].epoch == 2
    assert f"{newest} is not used" in caplog.text


def test_a_checkpoint_of_another_network_or_seed_is_not_used(digits, tmp_path, caplog):
    here, wide, other = tmp_path / "here", tmp_path / "wide", tmp_path / "other"
    experiment = stopped_run(digits, here)
    stopped_run(digits, wide, dataclasses.replace(CONFIGS["mlp"], hidden=(17,)))
    newest = "epoch00003.msgpack"
    shutil.copy(wide / FOLDER / newest, here / FOLDER / newest)
    assert resume_snapshot({0: here}, experiment.config)[1].epoch == 2
    assert "another network" in caplog.text
    shutil.copytree(here / FOLDER, other / FOLDER)
    (other / FOLDER / newest).unlink()
    with pytest.raises(InputError, match="no checkpoint"):
        resume_snapshot({1: other}, experiment.config)
    assert "it is of seed 0, not 1" in caplog.text


def test_checkpoints_of_other_data_are_not_taken_up(digits, tmp_path, caplog):
    config = stopped_run(digits, tmp_path).config
    finished, snapshot = resume_snapshot({0: tmp_path}, config, digits.checksum)
    assert not finished and snapshot is not None
    with pytest.raises(InputError, match="--overwrite"):
        resume_snapshot({0: tmp_path}, config, "0" * 64)
    assert f"it is of other data, sha256 {digits.checksum}" in caplog.text


def test_a_checkpoint_of_another_epoch_is_not_used(digits, tmp_path, caplog):
    experiment = stopped_run(digits, tmp_path)
    folder = tmp_path / FOLDER
    shutil.copy(folder / "epoch00001.msgpack", folder / "epoch00003.msgpack")
    assert resume_snapshot({0: tmp_path}, experiment.config)[1].epoch == 2
    assert "epoch00003.msgpack is not used: it is of epoch 1, not 3" in caplog.text


# What a file may hold whose sha256 is right.
FORGED = {
    "no msgpack": b"\xc1",
    "no map": msgpack.packb(["seed"]),
    "no states": msgpack.packb({"seed": "0", "history": "[{}]"}),
    "states of another form": msgpack.packb(
        {"seed": "0", "history": "[]", "states": 5}
    ),
    "another history": msgpack.packb(
        {"seed": "0", "history": '[{"epok": 1}]', "states": {}}
    ),
    # Its declared sizes would take 400 lists of 2 MB each.
    "lists without end": nested(400, 250_000) + bytes(300_000),
}


@pytest.mark.parametrize("forged", FORGED)
def test_a_checkpoint_of_another_version_is_not_used(forged, tmp_path, caplog):
    path = tmp_path / FOLDER / "epoch00001.msgpack"
    path.parent.mkdir()
    path.write_bytes(FORGED[forged] + hashlib.sha256(FORGED[forged]).digest())
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="no checkpoint in .* is sound"):
            load_snapshot({0: tmp_path}, CONFIGS["mlp"])
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert f"{path} is not used: it is of another version" in caplog.text


def test_another_config_is_refused_by_its_fields_but_for_more_epochs(digits, tmp_path):
    config = stopped_run(digits, tmp_path).config
    other = dataclasses.replace(config, learning_rate=0.5, batch_size=7)
    with pytest.raises(InputError) as error:
        resume_snapshot({0: tmp_path}, other)
    assert "--learning_rate was 0.003, is 0.5" in str(error.value)
    assert "--batch_size was 256, is 7" in str(error.value)
    with pytest.raises(InputError, match="--epochs was 4, is 2"):
        resume_snapshot({0: tmp_path}, dataclasses.replace(config, epochs=2))
    more = dataclasses.replace(config, epochs=9)
    assert resume_snapshot({0: tmp_path}, more)[1].epoch == 3


def test_seeds_together_go_on_from_the_last_epoch_that_all_have(
    digits, tmp_path, caplog
):
    experiment = prepare(CONFIGS["mlp"], digits, seeds=2)
    whole = {seed: tmp_path / f"whole{seed}" for seed in (3, 8)}
    halves = {seed: tmp_path / f"halves{seed}" for seed in (3, 8)}
    want = fit_into(experiment, whole, lambda epochs: None)

    def stop(epochs):
        if epochs[0].epoch == 2:
            raise Stopped(2, "")

    with pytest.raises(Stopped):
        fit_into(experiment, halves, stop, checkpoint_every=1)
    (halves[8] / FOLDER / "epoch00002.msgpack").unlink()
    got = go_on(experiment, halves)
    assert "not used" not in caplog.text  # what is not there is not damaged
    for seed, record, other in zip((3, 8), got, want, strict=True):
        assert outcome(record, halves[seed]) == outcome(other, whole[seed])


# Real programs.

EPOCHS = 60
TRAIN = {
    "mlp": ("--model=mlp", "--hidden=16"),
    "lstm": ("--model=lstm", "--lstm_units=16", "--dropout=0.2"),
    "cnn": ("--model=cnn", "--conv=8:pool2", "--hidden=16"),
}


def command(name: str, folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "experiments.train", "--dataset=digits"),
        *(*TRAIN[name], f"--epochs={EPOCHS}", "--batch_size=256"),
        *("--checkpoint_every=1", f"--run_dir={folder}"),
    ]


def start(words: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "MNIST_JAX_DATA_DIR": ""}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True
    )


def kill_and_resume(name: str, kills: int, rng: random.Random, tmp_path: Path) -> None:
    """Kills a run at random moments and resumes it: it must end as if alone."""
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    assert subprocess.run(command(name, alone), cwd=ROOT, timeout=300).returncode == 0
    for number in range(kills):
        process = start([*command(name, killed), *(["--resume"] if number else [])])
        # Most after the first row, since starting takes longer than training.
        if rng.random() < 0.8:
            for line in process.stdout:
                if re.match(r" ?\d+/", line):
                    break
        time.sleep(rng.random())
        process.kill()
        _, errors = process.communicate(timeout=300)
        assert "Traceback" not in errors, errors
        assert "not used" not in errors, errors  # no half-written checkpoint
        if (killed / METRICS).exists():
            for line in (killed / METRICS).read_text().splitlines():
                json.loads(line)
    process = start([*command(name, killed), "--resume"])
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    records = [json.loads((f / "record.json").read_text()) for f in (alone, killed)]
    assert records[0]["params_sha256"] == records[1]["params_sha256"]
    rows = [len((f / METRICS).read_text().splitlines()) for f in (alone, killed)]
    assert rows == [EPOCHS, EPOCHS]


def test_a_run_killed_at_random_moments_ends_as_if_alone(tmp_path):
    kill_and_resume("mlp", 5, random.Random(0), tmp_path)


@pytest.mark.faults
@pytest.mark.parametrize("name", TRAIN)
def test_runs_of_every_network_survive_many_kills(name, tmp_path, record_property):
    kill_and_resume(name, 14, random.Random(name), tmp_path)
    record_property("kills: of runs", 14)


def random_damage(content: bytes, rng: random.Random) -> bytes:
    """Flips a bit, cuts off the end, or removes, inserts or zeroes some bytes."""
    place = rng.randrange(len(content))
    before, after = content[:place], content[place:]
    damaged = rng.choice(
        [
            before + bytes([after[0] ^ 1 << rng.randrange(8)]) + after[1:],
            before,
            before + after[rng.randint(1, 100) :],
            before + rng.randbytes(rng.randint(1, 100)) + after,
            before + bytes(len(after[:4096])) + after[4096:],
        ]
    )
    return damaged if damaged != content else b""


@pytest.mark.faults
def test_every_damaged_file_of_hundreds_is_refused(
    digits, tmp_path, caplog, record_property
):
    stopped, finished = tmp_path / "stopped", tmp_path / "finished"
    config = stopped_run(digits, stopped).config
    fit_into(prepare(CONFIGS["mlp"], digits), {0: finished}, lambda epochs: None)
    model, entry = create_model(config), tmp_path / "entry.npy"
    cache.write_entry(entry, digits.test.images[:50])

    def refused_checkpoint() -> bool:
        return load_snapshot({0: stopped}, config).epoch == 2

    def refused_parameters() -> bool:
        with pytest.raises(InputError, match="params.msgpack is damaged"):
            read_params(finished, model)
        return True

    rng, tried = random.Random(0), 0
    for path, refused in (
        (stopped / FOLDER / "epoch00003.msgpack", refused_checkpoint),
        (finished / "params.msgpack", refused_parameters),
        (entry, lambda: cache.read_entry(entry, (28, 28)) is None),
    ):
        content = path.read_bytes()
        for _ in range(200):
            caplog.clear()
            path.write_bytes(random_damage(content, rng))
            assert refused()
            assert path == finished / "params.msgpack" or str(path) in caplog.text
            tried += 1
        path.write_bytes(content)
    assert load_snapshot({0: stopped}, config).epoch == 3
    assert (
        read_params(finished, model) and cache.read_entry(entry, (28, 28)) is not None
    )
    record_property("damaged files", tried)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_run_that_can_go_on(number, tmp_path):
    words = command("mlp", tmp_path)
    words[words.index(f"--epochs={EPOCHS}")] = "--epochs=100000"
    process = start(words)
    for line in process.stdout:
        if re.match(r" ?\d+/", line):
            break
    process.send_signal(number)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 128 + number, errors
    assert "Traceback" not in errors
    assert "--resume goes on after the last checkpoint in" in errors
    assert names(tmp_path)


# A program that never comes to a good place to stop at.
DEAF = """
import signal, time
from mnist_jax.cli.main import run_program, stop_between_parts
def main():
    stop_between_parts("")
    before = signal.getsignal(signal.SIGTERM)
    print("ready", flush=True)
    for _ in range(3000):
        if signal.getsignal(signal.SIGTERM) != before:
            print("one has come", flush=True)
            time.sleep(600)
        time.sleep(0.01)
run_program(main)
"""


@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_a_second_signal_stops_at_once(number, status):
    process = start([sys.executable, "-c", DEAF])
    for line in process.stdout:  # until it sleeps
        process.send_signal(number)
        if line == "one has come\n":
            break
    _, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors
    assert "Traceback" not in errors


def test_resume_says_where_it_starts_and_that_a_run_is_finished(tmp_path):
    words = command("mlp", tmp_path)[2:]
    words[words.index(f"--epochs={EPOCHS}")] = "--epochs=2"
    first = run(*words, "--resume", "--quiet")
    assert "starting from the beginning" in first.stdout
    assert "images/s" not in first.stdout and "test accuracy" in first.stdout
    again = run(*words, "--resume")
    assert "is finished" in again.stdout
    words[words.index("--epochs=2")] = "--epochs=3"
    more = run(*words, "--resume")
    assert "going on after epoch 2" in more.stdout and " 3/3 " in more.stdout
