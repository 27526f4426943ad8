"""Training on a GPU or TPU, compared with the CPU; `make accelerator` runs this."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.processes import run_python

from mnist_jax.config import MODELS, TrainConfig
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Dataset
from mnist_jax.models.layers import Dropout
from mnist_jax.models.networks import create_model, init_model
from mnist_jax.training.fit import finish, fit
from mnist_jax.training.prepare import prepare
from mnist_jax.training.steps import batch_gradients

pytestmark = pytest.mark.accelerator

# Largest relative errors of a gradient: products of float32 may be rounded to TF32, and
# the CNN's activations are bfloat16.
TOLERANCES = {"highest": 1e-4, "float32": 3e-2, "bfloat16": 0.15}


@pytest.fixture(scope="module", autouse=True)
def accelerator() -> None:
    if jax.default_backend() == "cpu":
        pytest.skip("JAX finds no GPU or TPU")


def gradients(config: TrainConfig, dataset: Dataset, device: jax.Device):
    """Returns the gradients of the initial parameters, drawn on the CPU."""
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        params = jax.jit(
            lambda key: init_model(create_model(config, MNIST), key, IMAGE_SHAPE)
        )(jax.random.key(0))
    images = np.float32(dataset.train.images[:128]) / 255
    arrays = params, images, dataset.train.labels[:128], np.ones(128, np.float32)
    impl = "plain" if device.platform == "cpu" else "auto"
    model = create_model(dataclasses.replace(config, impl=impl), MNIST)
    step = jax.jit(lambda *a: batch_gradients(*a, jax.random.key(1), model)[0])
    with jax.default_device(device):
        return jax.device_get(step(*jax.device_put(arrays, device)))


@pytest.mark.parametrize("model", MODELS)
def test_gradients_are_those_of_the_cpu(model, mnist: Dataset):
    config = TrainConfig(model=model)
    with jax.default_matmul_precision("highest"):
        want = gradients(config, mnist, jax.devices("cpu")[0])
        highest = gradients(config, mnist, jax.devices()[0])
    half = dataclasses.replace(config, precision="bfloat16")
    found = {
        "highest": highest,
        "float32": gradients(config, mnist, jax.devices()[0]),
        "bfloat16": gradients(half, mnist, jax.devices()[0]),
    }
    for precision, got in found.items():
        errors = jax.tree.map(
            lambda g, w: float(np.linalg.norm(g - w) / np.linalg.norm(w)), got, want
        )
        largest = max(jax.tree.leaves(errors))
        assert largest < TOLERANCES[precision], (precision, errors)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("model", MODELS)
def test_seeds_learn_mnist_together(model, precision, mnist: Dataset):
    config = TrainConfig(model=model, precision=precision, epochs=1)
    runs = finish(fit(prepare(config, mnist, seeds=2), [0, 1]))
    accuracies = [record.test_accuracy for record, _ in runs]
    least = {"mlp": 0.94, "lstm": 0.93, "cnn": 0.97}[model]
    assert least < min(accuracies) < max(accuracies) < 1.0
    for _, params in runs:
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}
        assert dtypes == {jnp.dtype(jnp.float32)}


def test_dropout_masks_are_those_of_the_cpu():
    layer, x = Dropout(0.3), np.ones((64, 100), np.float32)

    def run(device: jax.Device):
        rngs = {"dropout": jax.device_put(jax.random.key(3), device)}
        return layer.apply({}, jax.device_put(x, device), True, 0, rngs=rngs)

    np.testing.assert_array_equal(run(jax.devices()[0]), run(jax.devices("cpu")[0]))


@pytest.mark.parametrize("model", MODELS)
def test_two_processes_train_the_same_parameters_with_the_flag(model, tmp_path):
    digests = []
    for name in ("first", "second"):
        # Recompiled, as on another machine: XLA's choice of algorithms may differ.
        run_python(
            "-m",
            "experiments.train",
            *(f"--model={model}", "--dataset=digits", "--epochs=2"),
            *("--compile_cache=off", f"--run_dir={tmp_path / name}"),
            XLA_FLAGS="--xla_gpu_deterministic_ops=true",
        )
        record = json.loads((tmp_path / name / "record.json").read_text())
        digests.append(record["params_sha256"])
    assert digests[0] == digests[1]
