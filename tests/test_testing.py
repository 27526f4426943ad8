"""The checks of networks: what each finds, and that right networks pass."""

import ast
import inspect

import numpy as np
import pytest
from flax import nnx

from mnist_jax import TrainConfig, testing
from mnist_jax.data.types import MNIST
from mnist_jax.models.networks import create_model
from mnist_jax.testing import (
    check_gradients,
    check_model,
    check_same_tree,
)


@pytest.mark.parametrize(
    "name, message",
    [
        ("Probabilities", "probabilities, which add up to 1; return logits"),
        ("Mixed", "in evaluation the logits of an image depend on the batch"),
        ("Noisy", "differ in batches of 1 and 16 images; turn noise off"),
        ("MixedInTraining", "in training the logits of an image depend on the other"),
        ("Standardized", "logits in evaluation are not finite for a black image"),
        ("Traced", "the compiled network has other logits"),
        ("RowRoots", "losses are not finite"),
        ("Detached", r"\['Dense_0'\]\['bias'\] did not change in 12 steps: the logits"),
        (
            "NnxConstant",
            r"\['norm'\]\['mean'\] did not change in .* use_running_average",
        ),
        ("Bent", r"the gradient of first/bias is wrong: .*custom_vjp"),
    ],
)
def test_check_model_names_what_is_wrong(networks, name, message):
    with pytest.raises(AssertionError, match=message):
        check_model(f"{networks}:{name}")


class Nnx(nnx.Module):
    def __init__(self, width: int, classes: int, *, rngs: nnx.Rngs):
        self.first = nnx.LoRALinear(30, width, lora_rank=2, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images):
        x = self.norm(self.first(images.reshape(len(images), -1)))
        return self.last(self.dropout(nnx.relu(x)))


def test_check_model_takes_the_class_of_an_nnx_module():
    check_model(Nnx, image_shape=(5, 6), classes=3, model_args=["width=8"])


def test_networks_that_cannot_compute_in_float64_pass(networks):
    check_model(f"{networks}:Half")
    check_gradients(create_model(TrainConfig(model=f"{networks}:Recurrent"), MNIST))


def test_the_checks_also_run_without_assert_statements():  # python -O
    tree = ast.parse(inspect.getsource(testing))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def test_rounding_errors_of_a_gradient_that_is_zero_are_not_compared():
    one = {"key bias": np.float32([2e-9, -1e-9]), "kernel": np.float32([0.5])}
    other = {**one, "key bias": np.float32([-1e-9, 1e-9])}
    check_same_tree(other, one, 1e-4)
    for name, wrong in (("key bias", [1e-6, -1e-9]), ("kernel", [0.5001])):
        with pytest.raises(AssertionError, match=name):
            check_same_tree({**one, name: np.float32(wrong)}, one, 1e-4)
    with pytest.raises(AssertionError, match="key bias"):
        check_same_tree(other, one, 0)
