"""Compiled programs at full size, compared with float64."""

import re
from functools import partial

import jax
import numpy as np
import pytest
from helpers.compilation import optimized_jit, users_options

from mnist_jax.config import MODELS, TrainConfig
from mnist_jax.data.types import MNIST, Dataset
from mnist_jax.models.networks import create_model
from mnist_jax.training import epochs
from mnist_jax.training.prepare import prepare
from mnist_jax.training.steps import batch_gradients

options = epochs.compiler_options
CHUNK = 1000  # images per call of the reference


@pytest.fixture(autouse=True)
def compiled_as_for_users(monkeypatch) -> None:
    """Undoes the tests' quick flags in what these tests compile."""
    monkeypatch.setattr(
        epochs, "compiler_options", lambda platform: users_options() | options(platform)
    )


def reference(config: TrainConfig, params, images, labels):
    """Returns a batch's mean gradients and its metrics, computed in float64."""
    model = create_model(TrainConfig(**{**vars(config), "impl": "plain"}), MNIST)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: np.float64(leaf), params)
        step = optimized_jit(partial(batch_gradients, model=model))
        total = None
        for start in range(0, len(labels), CHUNK):
            chunk = slice(start, start + CHUNK)
            batch = np.float64(images[chunk]) / 255, labels[chunk]
            mask, key = np.ones(len(batch[1])), jax.random.key(0)
            found = step(params, *batch, mask, key)
            total = found if total is None else jax.tree.map(np.add, total, found)
        gradients, metrics = jax.device_get(total)
        return jax.tree.map(lambda g: g / len(labels), gradients), metrics


@pytest.mark.parametrize(
    "model, seeds",
    [
        ("mlp", 1),
        *(
            pytest.param(model, seeds, marks=pytest.mark.faults)
            for model in MODELS
            for seeds in (1, 16)
        ),
    ],
)
def test_a_step_over_all_images_equals_float64(model, seeds, mnist: Dataset):
    config = TrainConfig(
        model=model,
        batch_size=60_000,
        epochs=1,
        validation="none",
        optimizer="sgd",
        schedule="constant",
        learning_rate=1.0,  # so that a step subtracts the gradient
    )
    experiment = prepare(config, mnist, seeds)
    programs = experiment.programs
    states, keys = programs.init_run(range(seeds))
    before = jax.device_get(states.variables)
    indices = programs.shard(
        np.arange(60_000, dtype=np.int32)[None, None].repeat(seeds, 0)
    )
    states, metrics = programs.run_steps(
        states, experiment.train, indices, programs.epoch_keys(keys, 0)
    )
    after = jax.device_get(states.variables)
    tested = programs.evaluate(states.variables, experiment.held_out, experiment.test)
    for seed in {0, seeds - 1}:
        old, new = (_of_seed(tree, seed) for tree in (before, after))
        want, sums = reference(config, old, *mnist.train)
        got = jax.tree.map(np.subtract, old, new)
        jax.tree.map(_assert_close, got, want)
        np.testing.assert_allclose(metrics.loss_sum[seed], sums.loss_sum, rtol=1e-5)
        assert abs(float(metrics.correct[seed, 0]) - sums.correct) <= 2
        _, sums = reference(config, new, *mnist.test)
        np.testing.assert_allclose(tested.loss_sum[seed], sums.loss_sum, rtol=1e-4)
        assert abs(float(tested.correct[seed]) - sums.correct) <= 2
    for program in (programs.train, programs.evaluate):
        check_fusions(program.as_text())


def _of_seed(tree, seed: int):
    return jax.tree.map(lambda leaf: leaf[seed], tree)


def _assert_close(got: np.ndarray, want: np.ndarray) -> None:
    assert np.linalg.norm(got - want) < 5e-4 * np.linalg.norm(want)


def check_fusions(text: str) -> None:
    """Checks that XLA's fusions for YNNPACK hold no matrix product and its sum."""
    fused = re.findall(r"calls=%([\w.-]+)[^\n]*__ynn_fusion", text)
    assert fused or "__ynn_fusion" not in text
    for name in fused:
        body = re.search(rf"^%{re.escape(name)} [^{{]*{{\n(.*?)^}}", text, re.M | re.S)
        operations = set(re.findall(r"= [^ ]+ ([\w-]+)\(", body[1]))
        assert "dot" not in operations or operations <= {"parameter", "dot", "bitcast"}
