"""Tests of the starts that `benchmarks.throughput` measures."""

import contextlib
import json
from types import SimpleNamespace

from benchmarks import starts
from mnist_jax.config import TrainConfig


def test_starts_are_of_the_measured_config_on_the_chosen_platform(monkeypatch):
    asked = []

    def start(*arguments, environment):
        assert "--platform=gpu" in arguments
        worker = SimpleNamespace(ask=lambda line: asked.append(json.loads(line)))
        return contextlib.nullcontext(worker)

    monkeypatch.setattr(starts, "Worker", start)
    machine = SimpleNamespace(platform="gpu", data_dir=None)
    monkeypatch.setattr(starts, "FLAGS", machine)
    config = TrainConfig(model="cnn", conv=("4:k5:pool2", "8"), epochs=5)
    starts.measure_starts(config, 1)
    for job in asked:
        assert TrainConfig(**job["config"]) == TrainConfig(
            model="cnn", conv=("4:k5:pool2", "8"), epochs=1
        )
    assert len(asked) == 2
