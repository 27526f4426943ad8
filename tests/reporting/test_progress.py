"""Tests of the printed progress: rows, progress bar, plain lines, quiet."""

import io
import sys

import pytest

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.records.schema import EpochRecord
from mnist_jax.reporting import progress
from mnist_jax.reporting.progress import ProgressPrinter
from mnist_jax.training.fit import Progress
from mnist_jax.training.prepare import Experiment, prepare

RECORD = EpochRecord(1, 0.5, 0.75, 0.25, 0.875, 2.0, 0.5)


def chunk(step: int) -> Progress:
    """Returns the progress after `step` of the 100 steps of an epoch."""
    return Progress(1, step, 100, 0.5, 0.75, 1234.0, 56.0)


@pytest.fixture(scope="module")
def experiment(digits: Dataset) -> Experiment:
    config = TrainConfig(model="mlp", dataset="digits", hidden=(4,), epochs=5)
    return prepare(config, digits)


def test_without_a_terminal_a_long_epoch_prints_a_few_lines(experiment, capsys):
    callbacks = ProgressPrinter().training(experiment, {})
    for step in range(1, 101):
        callbacks.on_chunk(chunk(step))
    callbacks.on_epoch([RECORD])
    text = capsys.readouterr().out
    network, data, *_ = text.splitlines()
    assert network.startswith("mlp: 3,190 parameters, ") and "compiled in " in network
    assert data == "digits: 1,293 training, 144 validation, 360 test images"
    lines = [line for line in text.splitlines() if line.startswith("epoch 1, ")]
    assert len(lines) == 3 and lines[0] == (
        "epoch 1, 30%: loss 0.5000, accuracy 0.7500, 1,234 images/s, 56 s left"
    )
    assert text.splitlines()[-1].startswith(" 1/5   0.5000 0.7500    0.2500   0.8750")


def test_on_a_terminal_the_row_replaces_a_progress_bar(experiment, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    callbacks = ProgressPrinter().training(experiment, {})
    for step in (40, 80, 100):
        callbacks.on_chunk(chunk(step))
    callbacks.on_epoch([RECORD])
    text = terminal.getvalue()
    assert " 40%|" in text and "| epoch 1, loss 0.5000" in text
    assert "56 s left" in text and "  0%" not in text and "100%" not in text
    assert text.endswith("\r")  # cleared before the row was printed
    assert "epoch 1, " not in capsys.readouterr().out


def test_there_may_be_no_stderr(experiment, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    ProgressPrinter().training(experiment, {}).on_chunk(chunk(40))


def test_quiet_prints_nothing(experiment, capsys):
    callbacks = ProgressPrinter(quiet=True).training(experiment, {})
    callbacks.on_chunk(chunk(50))
    callbacks.on_epoch([RECORD])
    assert capsys.readouterr() == ("", "")


def test_a_row_has_mean_metrics_and_total_seconds_over_seeds(experiment, capsys):
    other = EpochRecord(1, 1.5, 0.25, 0.75, 0.625, 2.0, 0.5)
    ProgressPrinter().training(experiment, {}).on_epoch([RECORD, other])
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:6] == ["1/5", "1.0000", "0.5000", "0.5000", "0.7500", "4.00"]


def test_training_stops_between_chunks_but_not_before_the_checkpoint_of_an_epoch(
    experiment, capsys, monkeypatch
):
    monkeypatch.setattr(progress, "_CHUNKS_PER_LINE", 1)
    printed, checks = [], []

    def check_stopped() -> None:
        printed.extend(capsys.readouterr().out.splitlines())
        checks.append(len(printed))

    callbacks = ProgressPrinter(check_stopped=check_stopped).training(experiment, {})
    capsys.readouterr()
    for step in (50, 99, 100):
        callbacks.on_chunk(chunk(step))
    assert checks == [1, 2]
    callbacks.on_epoch([RECORD])
    assert checks == [1, 2, 3]
    assert printed[1].startswith("epoch 1, 99%") and printed[2].startswith(" 1/5")
