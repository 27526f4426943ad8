"""Tests of event files, read back with TensorBoard's message types."""

import importlib.util
import struct
from pathlib import Path

import pytest
from helpers.runs import on_epoch
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.records.schema import EpochRecord
from mnist_jax.reporting.event_files import check_tensorboard, epoch_scalars
from mnist_jax.training.experiment import prepare
from mnist_jax.training.mesh import make_mesh
from mnist_jax.training.run_dir import fit_into


def read_scalars(folder: Path) -> dict[tuple[str, int], float]:
    """Returns the scalars that TensorBoard shows of a folder, by tag and step.

    It reads the files in the order of their names. The start of a session removes the
    steps from its own on.

    A record is its length (8 bytes), a checksum (4), an event, a checksum (4):
    https://www.tensorflow.org/tutorials/load_data/tfrecord
    """
    paths, scalars = sorted(folder.glob("events.out.tfevents.*")), {}
    content = b"".join(path.read_bytes() for path in paths)
    while content:
        [length] = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        if event.session_log.status == SessionLog.START:
            scalars = {k: v for k, v in scalars.items() if k[1] < event.step}
        for value in event.summary.value:
            assert (value.tag, event.step) not in scalars
            scalars[value.tag, event.step] = value.simple_value
        content = content[16 + length :]
    return scalars


def test_each_run_has_the_scalars_of_its_last_training(digits: Dataset, tmp_path):
    config = TrainConfig(model="mlp", hidden=(), epochs=2, batch_size=100)
    experiment = prepare(config, digits, 2, mesh=make_mesh(1))
    folders = {seed: tmp_path / f"seed{seed}" for seed in range(2)}
    for _ in range(2):
        with epoch_scalars(list(folders.values()), 1_000) as write:
            _, record = fit_into(experiment, folders, on_epoch(write))
    expected = {}
    for epoch in record.epochs:
        expected |= {
            ("loss/training", epoch.epoch): epoch.loss,
            ("loss/validation", epoch.epoch): epoch.val_loss,
            ("accuracy/training", epoch.epoch): epoch.accuracy,
            ("accuracy/validation", epoch.epoch): epoch.val_accuracy,
            ("images_per_second", epoch.epoch): 1_000 / epoch.train_seconds,
        }
    assert read_scalars(folders[1]) == pytest.approx(expected)
    assert read_scalars(folders[0]).keys() == expected.keys()


def test_validation_scalars_are_optional(tmp_path):
    with epoch_scalars([tmp_path], 100) as write:
        assert list(tmp_path.iterdir()) == []  # no file before the first epoch
        write([EpochRecord(1, 0.5, 0.75, None, None, 0.5, 0.0)])
    assert read_scalars(tmp_path) == {
        ("loss/training", 1): 0.5,
        ("accuracy/training", 1): 0.75,
        ("images_per_second", 1): 200.0,
    }


def test_steps_that_a_resumed_run_repeats_replace_the_earlier_ones(tmp_path):
    for epochs in (range(1, 5), range(3, 6)):  # stopped after 4, resumed after 2
        with epoch_scalars([tmp_path], 100) as write:
            for epoch in epochs:
                write([EpochRecord(epoch, epochs[0], 0.75, None, None, 0.5, 0.0)])
    scalars = read_scalars(tmp_path)
    losses = [value for (tag, _), value in scalars.items() if tag == "loss/training"]
    assert losses == [1, 1, 3, 3, 3]


def test_missing_tensorboardx_is_an_error_with_instructions(monkeypatch):
    check_tensorboard()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install '\.\[tensorboard\]'"):
        check_tensorboard()
