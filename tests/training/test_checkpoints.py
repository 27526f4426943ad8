"""Checkpoints: stopping, resuming, and damaged files."""

import dataclasses
import itertools
import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.runs import (
    CONFIG,
    flip_bit,
    outcome,
    prepare_once,
    resumable,
    stopped_run,
    train_into,
)

from mnist_jax.config import TrainConfig
from mnist_jax.data.splits import split_dataset
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.networks import create_model, variable_shapes
from mnist_jax.testing.trees import named
from mnist_jax.training import checkpoints, fit
from mnist_jax.training.checkpoints import FOLDER, load_checkpoint
from mnist_jax.training.mesh import make_mesh
from mnist_jax.training.prepare import prepare
from mnist_jax.training.run_dir import METRICS, load_run, load_variables, run_keys


def test_stopped_seeds_resume_bit_for_bit(digits: Dataset, tmp_path):
    """On two devices, from the one checkpoint that seeds trained together have."""
    network = dict(model="lstm", lstm_units=(16,), dropout=(0.2,))
    config = dataclasses.replace(CONFIG, **network)
    experiment = prepare(config, digits, 2, mesh=make_mesh(2))
    whole = {seed: tmp_path / f"whole{seed}" for seed in (3, 8)}
    halves = {seed: tmp_path / f"halves{seed}" for seed in (3, 8)}
    want = train_into(experiment, whole)

    train_into(experiment, halves, 2, checkpoint_every=1)
    assert len(names(halves[3])) == 2 and not names(halves[8])
    finished, checkpoint = resumable(halves, config)
    assert not finished
    got = train_into(experiment, halves, checkpoint_every=1, resume=checkpoint)
    for seed, record, other in zip((3, 8), got, want, strict=True):
        assert outcome(record, halves[seed]) == outcome(other, whole[seed])
    assert resumable(halves, config) == (True, None)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "keras_adam", "muon"])
def test_every_optimizer_resumes_bit_for_bit(optimizer, digits: Dataset, tmp_path):
    """With an average, frozen layers, clipping, batch normalization and bfloat16."""
    more = {"sgd": dict(momentum=0.9)}.get(optimizer, {})
    config = TrainConfig(
        model="cnn",
        dataset="digits",
        conv=("4:s2:pool3:bn",),
        hidden=(4,),
        epochs=2,
        batch_size=256,
        optimizer=optimizer,
        ema=0.9,
        freeze=("Conv_0",),
        clip_norm=1.0,
        precision="bfloat16",
        **more,
    )
    experiment = prepare(config, digits, mesh=make_mesh(1))
    whole, halves = {0: tmp_path / "whole"}, {0: tmp_path / "halves"}
    [want] = train_into(experiment, whole)
    train_into(experiment, halves, 1, checkpoint_every=1)
    _, checkpoint = resumable(halves, config)
    [got] = train_into(experiment, halves, resume=checkpoint)
    assert outcome(got, halves[0]) == outcome(want, whole[0])


def test_the_average_of_parameters_is_validated_tested_and_saved(digits, tmp_path):
    config = dataclasses.replace(CONFIG, ema=0.9, epochs=1)
    [record] = train_into(prepare(config, digits), {0: tmp_path}, checkpoint_every=1)
    _, checkpoint = load_checkpoint(tmp_path, run_keys(config, digits, [0]))
    run, arrays = load_run(tmp_path), checkpoint.arrays
    for name, leaf in named(run.variables).items():
        state = f"states/opt_state/total/{name.removeprefix('params/')}"
        weight = arrays["states/opt_state/weight"]
        np.testing.assert_allclose(leaf, (arrays[state] / weight)[0], rtol=1e-6)
        last = arrays[f"states/params/{name.removeprefix('params/')}"][0]
        assert not np.allclose(leaf, last, rtol=1e-3)
    split = split_dataset(digits, config)
    for images, accuracy in (
        (split.validation, record.epochs[-1].val_accuracy),
        (split.test, record.test_accuracy),
    ):
        predicted = run.predict(images.images).argmax(axis=1)
        assert np.mean(predicted == images.labels) == pytest.approx(accuracy)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / FOLDER).glob("epoch*"))


def test_only_the_newest_checkpoints_are_kept_and_a_new_run_removes_them(
    digits, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoints, "KEEP", 2)
    experiment = stopped_run(digits, tmp_path)
    assert names(tmp_path) == ["epoch00002.msgpack", "epoch00003.msgpack"]
    train_into(experiment, {0: tmp_path})
    assert names(tmp_path) == []


def test_the_total_of_a_resumed_run_is_the_sum_over_its_stops(
    digits, tmp_path, monkeypatch
):
    experiment = stopped_run(digits, tmp_path)
    _, checkpoint = resumable({0: tmp_path}, experiment.config)
    before = [
        record.train_seconds + record.eval_seconds for record in checkpoint.histories[0]
    ]
    assert len(before) == 3 and min(before) > 0
    # Each call to the clock is an hour after the previous one.
    hours = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: 3600.0 * next(hours))
    monkeypatch.setattr(fit, "time", clock)
    [record] = train_into(experiment, {0: tmp_path}, resume=checkpoint)
    # The first call returned 0.
    rest = 3600 * (next(hours) - 1) + experiment.compile_seconds
    assert record.total_seconds == pytest.approx(sum(before) + rest, abs=1e-6)


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    digits, tmp_path, caplog
):
    experiment = stopped_run(digits, tmp_path)
    newest = tmp_path / FOLDER / "epoch00003.msgpack"
    flip_bit(newest)
    _, checkpoint = resumable({0: tmp_path}, experiment.config)
    assert checkpoint.epoch == 2
    assert str(newest) in caplog.text and "damaged" in caplog.text
    for path in {*(tmp_path / FOLDER).glob("epoch*")} - {newest}:
        flip_bit(path)
    with pytest.raises(InputError, match="no valid checkpoint"):
        resumable({0: tmp_path}, experiment.config)
    # Epochs after the checkpoint are run again.
    [record] = train_into(experiment, {0: tmp_path}, resume=checkpoint)
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]
    assert len(record.epochs) == 4


def test_a_checkpoint_of_another_network_or_seed_is_not_used(digits, tmp_path, caplog):
    here, wide = tmp_path / "here", tmp_path / "wide"
    experiment = stopped_run(digits, here)
    stopped_run(digits, wide, dataclasses.replace(CONFIG, hidden=(17,)))
    newest = "epoch00003.msgpack"
    shutil.copy(wide / FOLDER / newest, here / FOLDER / newest)
    assert resumable({0: here}, experiment.config)[1].epoch == 2
    assert "it is from another run: --hidden was 17, is 16" in caplog.text
    with pytest.raises(InputError, match="no valid checkpoint to resume from"):
        resumable({1: here}, experiment.config)
    assert "it is from other seeds" in caplog.text


def random_damage(content: bytes, rng: random.Random) -> bytes:
    """Flips a bit, cuts off the end, or removes or inserts some bytes."""
    position = rng.randrange(len(content))
    before, after = content[:position], content[position:]
    flipped = bytes([after[0] ^ 1 << rng.randrange(8)])
    inserted = rng.randbytes(rng.randint(1, 100))
    return before + rng.choice([flipped + after[1:], b"", after[50:], inserted + after])


@pytest.mark.faults
def test_hundreds_of_damaged_files_are_refused(digits, tmp_path):
    stopped, finished = tmp_path / "stopped", tmp_path / "finished"
    config = stopped_run(digits, stopped).config
    train_into(prepare_once(CONFIG, digits), {0: finished})
    like = variable_shapes(create_model(config, MNIST), IMAGE_SHAPE)
    newest, rng = stopped / FOLDER / "epoch00003.msgpack", random.Random(0)
    for path in (newest, finished / "params.msgpack"):
        content = path.read_bytes()
        for _ in range(200):
            path.write_bytes(random_damage(content, rng))
            if path == newest:
                assert resumable({0: stopped}, config)[1].epoch == 2
                continue
            with pytest.raises(InputError, match="params.msgpack is damaged"):
                load_variables(finished, like)
