"""The training loop: its clocks, evaluations, records, and diverging runs."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from helpers.custom_networks import config_of

from mnist_jax.config import TrainConfig
from mnist_jax.data.pixels import make_preprocess
from mnist_jax.data.splits import split_dataset
from mnist_jax.data.types import MNIST, Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.networks import create_model
from mnist_jax.reporting.tables import changed_settings
from mnist_jax.training import fit as fit_module
from mnist_jax.training.fit import Progress, finish, fit
from mnist_jax.training.mesh import seed_keys
from mnist_jax.training.prepare import prepare
from mnist_jax.training.steps import cross_entropy


def test_a_diverging_run_ends_with_what_to_change(digits: Dataset):
    config = TrainConfig(
        model="mlp",
        hidden=(8,),
        learning_rate=1e30,
        schedule="constant",
        batch_size=256,
    )
    events: list[Any] = []
    with pytest.raises(InputError) as error:
        events.extend(fit(prepare(config, digits), [0]))
    message = str(error.value)
    assert message.startswith("mlp, seed 0: the loss is ")
    advice = "try a --learning_rate below 1e+30 or --clip_norm=1"
    assert message.endswith(f" of 6 of epoch 1; {advice}")
    # The run ended after the chunk with the bad loss, not after the epoch.
    assert all(isinstance(event, Progress) for event in events)
    assert all(np.isfinite(event.loss) for event in events)


SMALL = TrainConfig(model="mlp", hidden=(16,), dropout=(0.3,), batch_size=100, epochs=1)


def test_seed_keys_equal_jax_random_key():
    seeds = [0, 1, 2**31, 2**32 - 1]
    expected = [jax.random.key_data(jax.random.key(seed)) for seed in seeds]
    np.testing.assert_array_equal(jax.random.key_data(seed_keys(seeds)), expected)
    assert seed_keys(seeds).dtype == jax.random.key(0).dtype


def test_records_of_bfloat16_say_what_stays_in_float32(networks, digits: Dataset):
    config = TrainConfig(
        model="cnn", conv=("4:pool2",), hidden=(16,), precision="bfloat16", epochs=1
    )
    with jax.default_matmul_precision("highest"):
        [(record, _)] = finish(fit(prepare(config, digits), [0]))
    assert "precision=bfloat16(convolutions:float32)" in changed_settings(record)
    assert record.environment.numerics == "jax_default_matmul_precision=highest"
    config = config_of(networks, "Linear", precision="bfloat16")
    [(record, _)] = finish(fit(prepare(config, digits), [0]))  # has no convolution
    assert "precision=bfloat16" in changed_settings(record)


def test_averaged_parameters_divide_nothing_by_0(digits: Dataset):
    experiment = prepare(dataclasses.replace(SMALL, ema=0.9), digits)
    with jax.debug_nans(True):
        [(record, _)] = finish(fit(experiment, [0]))
    assert np.isfinite(record.test_loss)


class CompileCounter:
    """A clock whose seconds are compiled programs; each reading takes a little."""

    def __init__(self):
        self.programs = self.readings = 0

    def count(self, event: str, _: float, **__: object) -> None:
        self.programs += event == "/jax/core/compile/backend_compile_duration"

    def perf_counter(self) -> float:
        self.readings += 1
        return self.programs + self.readings * 1e-6


def test_no_clock_of_an_epoch_holds_compiling_and_the_total_holds_all(
    digits: Dataset, monkeypatch
):
    jax.clear_caches()
    config = dataclasses.replace(SMALL, ema=0.9, tta=1)
    with monkeypatch.context() as patch:
        patch.setattr(jax.stages.Compiled, "__call__", None)
        experiment = prepare(config, digits)  # runs no program
    clock = CompileCounter()
    monkeypatch.setattr(fit_module, "time", clock)
    jax.monitoring.register_event_duration_secs_listener(clock.count)
    try:
        [(record, _)] = finish(fit(experiment, [0]))
    finally:
        jax.monitoring.unregister_event_duration_listener(clock.count)
    [epoch] = record.epochs
    assert round(epoch.train_seconds) == round(epoch.eval_seconds) == 0
    seconds = record.total_seconds - record.compile_seconds
    assert round(seconds) == clock.programs > 10  # with test-time augmentation


def test_validation_and_test_sets_are_evaluated_separately(digits: Dataset):
    for validation in ("fraction", "test"):
        config = dataclasses.replace(SMALL, validation=validation)
        [(record, variables)] = finish(fit(prepare(config, digits), [0]))
        sets = split_dataset(digits, config)
        last = record.epochs[-1]
        for split, loss, accuracy in (
            (sets.test, record.test_loss, record.test_accuracy),
            (sets.validation, last.val_loss, last.val_accuracy),
        ):
            logits = create_model(config, MNIST).apply(
                variables, make_preprocess(config, sets.train)(split.images)
            )
            assert accuracy == pytest.approx(np.mean(logits.argmax(1) == split.labels))
            losses = cross_entropy(logits, split.labels)
            assert loss == pytest.approx(float(losses.mean()), rel=1e-4)
