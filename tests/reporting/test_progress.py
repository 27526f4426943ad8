"""Tests of the printed progress: rows, progress bar, plain lines, quiet."""

import io
import re
import sys
from typing import Any

import pytest
from helpers.records import make_record

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import Stopped
from mnist_jax.records.schema import EpochRecord
from mnist_jax.reporting.progress import follow
from mnist_jax.training.fit import Epoch, Progress, Result
from mnist_jax.training.prepare import Experiment, prepare
from mnist_jax.training.runs import Event, Started

RECORD = EpochRecord(1, 0.5, 0.75, 0.25, 0.875, 2.0, 0.5)


def chunk(step: int) -> Progress:
    """Returns the progress after `step` of the 100 steps of an epoch."""
    return Progress(1, step, 100, 0.5, 0.75, 1234.0, 56.0)


@pytest.fixture(scope="module")
def experiment(digits: Dataset) -> Experiment:
    config = TrainConfig(model="mlp", dataset="digits", hidden=(4,), epochs=5)
    return prepare(config, digits)


def show(experiment: Experiment, *events: Event, **options: Any) -> None:
    """Prints events after the start of training."""
    follow((event for event in [Started(experiment, {}), *events]), **options)


def epoch(*records: EpochRecord) -> Epoch:
    return Epoch(records, None)


def test_without_a_terminal_an_epoch_is_a_row(experiment, capsys):
    show(experiment, chunk(50), epoch(RECORD))
    text = capsys.readouterr().out
    network, data, _, row = text.splitlines()
    assert network.startswith("mlp: 3,190 parameters, ") and "compiled in " in network
    assert data == "digits: 1,293 training, 144 validation, 360 test images"
    assert row.startswith(" 1/5   0.5000 0.7500    0.2500   0.8750")


def test_on_a_terminal_the_row_replaces_a_progress_bar(experiment, capsys, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    show(experiment, chunk(40), chunk(80), epoch(RECORD))
    text = terminal.getvalue()
    assert " 40%|" in text and "| epoch 1, loss 0.5000" in text
    assert "56 s left" in text and "  0%" not in text
    assert text.endswith("\r")  # cleared before the row was printed
    assert "epoch 1, " not in capsys.readouterr().out


def test_quiet_prints_results_only(experiment, capsys):
    events = "mlp: compiling ...", chunk(50), epoch(RECORD), Result(make_record(), None)
    show(experiment, *events, quiet=True)
    printed, errors = capsys.readouterr()
    assert re.fullmatch("seed 0: test accuracy .* s total\n", printed) and not errors


def test_a_row_has_mean_metrics_and_total_seconds_over_seeds(experiment, capsys):
    show(experiment, epoch(RECORD, EpochRecord(1, 1.5, 0.25, 0.75, 0.625, 2.0, 0.5)))
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:6] == ["1/5", "1.0000", "0.5000", "0.5000", "0.7500", "4.00"]


@pytest.mark.parametrize("stop", range(4))
def test_a_request_to_stop_is_seen_after_each_event_and_closes_training(
    experiment, stop
):
    checks, closed = iter(range(4)), []

    def events():
        try:
            yield from ("compiling", Started(experiment, {}), chunk(50), epoch(RECORD))
        finally:
            closed.append(True)

    def check_stopped() -> None:
        if next(checks) == stop:
            raise Stopped(2, "")

    with pytest.raises(Stopped):
        follow(events(), check_stopped=check_stopped)
    assert closed and list(checks) == list(range(stop + 1, 4))
