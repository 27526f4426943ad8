"""Tests of `benchmarks.throughput` that measure nothing."""

import contextlib
import dataclasses
from types import SimpleNamespace

from absl.flags import FlagValues

from benchmarks import throughput
from mnist_jax.cli.config_flags import config_from_flags, define_config_flags
from mnist_jax.config import TrainConfig


def test_starts_are_of_the_measured_config_on_the_chosen_platform(monkeypatch):
    commands = []

    def start(module, *arguments, environment):
        commands.append([module, *arguments])
        worker = SimpleNamespace(read=lambda: {"cached": False})
        return contextlib.nullcontext(worker)

    monkeypatch.setattr(throughput, "Worker", start)
    machine = SimpleNamespace(platform="gpu", data_dir=None)
    monkeypatch.setattr(throughput, "FLAGS", machine)
    config = TrainConfig(
        model="cnn",
        conv=("4:k5:pool2", "8"),
        hidden=(),
        precision="bfloat16",
        impl="plain",
        nesterov=True,
        optimizer="sgd",
        momentum=0.9,
        batch_size=32,
        validation="none",
        epochs=5,
        cpu_devices=1,
    )
    throughput.measure_starts("cnn", throughput.start_settings(config), 1)
    assert len(commands) == 3
    flags = FlagValues()
    define_config_flags(flags)
    for command in commands:
        rest = flags(command, known_only=True)
        assert "--platform=gpu" in rest
        assert config_from_flags(flags) == dataclasses.replace(config, epochs=1)
