"""The checks of networks: which faults each finds, and that right networks pass."""

import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from benchmarks.peers.worker import EXAMPLES
from mnist_jax.config import MODELS, ConvStage
from mnist_jax.errors import InputError
from mnist_jax.models.layers import Dropout
from mnist_jax.models.networks import CNN, LSTM, MLP
from mnist_jax.testing import CHECKS, check_model, no_compiling, subject
from mnist_jax.training import epochs
from mnist_jax.training.epochs import Programs

SHAPE, CLASSES = (6, 5), 3


class Base(nn.Module):
    """Two dense layers; a function before, between or after them makes a fault."""

    before: Callable = lambda x, train: x
    between: Callable = lambda x, train: nn.relu(x)
    after: Callable = lambda x, train: x

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(16)(self.before(images.reshape(len(images), -1), train))
        return self.after(nn.Dense(CLASSES)(self.between(x, train)), train)


def dropped_always(x, train):
    return nn.Dropout(0.5, deterministic=False)(x)


def normalized(x, train):
    return (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)


def masked(x, train):
    mask = jax.random.bernoulli(jax.random.key(0), 0.9, x.shape[1:])
    return nn.relu(jnp.where(mask | (not train), x, 0))


def not_used(x, train):
    nn.Dense(3)(x)
    return x


def projected_far_from_0(x, train):
    project = nn.Dense(30, use_bias=False)
    return project(x + 100) - project(0 * x + 100)


KEY = jax.random.key(0)


def masked_from_outside(x, train):
    mask = jax.random.bernoulli(KEY, 0.9, x.shape[1:])
    return nn.relu(jnp.where(mask | (not train), x, 0))


class MaskedTwice(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        if not train:
            return nn.relu(x)
        key = self.make_rng("dropout")
        masks = [jax.random.bernoulli(key, 0.9, (16,)) for _ in range(2)]
        return nn.relu(jnp.where(masks[0] & masks[1], x, 0))


@jax.custom_vjp
def bent(x):
    return jnp.tanh(x)


bent.defvjp(lambda x: (bent(x), bent(x)), lambda y, g: (g * (1 - y),))  # 1 - y**2


class NotUpdated(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Linear(30, 16, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.last = nnx.Linear(16, CLASSES, rngs=rngs)

    def __call__(self, images):
        x = self.norm(self.first(images.reshape(len(images), -1)), True)
        return self.last(nnx.relu(x))


class IgnoredOffset(nn.Module):
    """Has the same masks on every device, although it could know their images."""

    @nn.compact
    def __call__(self, images, train=False, batch_offset=0):
        x = nn.relu(nn.Dense(16)(images.reshape(len(images), -1)))
        return nn.Dense(CLASSES)(Dropout(0.2)(x, train, 0))


class SameName(nn.Module):
    """Has two parameters whose names in a file are equal."""

    @nn.compact
    def __call__(self, images):
        x = nn.Dense(16, name="a/b")(images.reshape(len(images), -1))
        return Named(name="a")(nn.relu(x))


class Named(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(CLASSES, name="b")(x)


# Each fault with the checks that find it, and what they report.
FAULTS = {
    "probabilities": (
        Base(after=lambda x, train: nn.softmax(x)),
        {"logits": "probabilities, which add up to 1"},
    ),
    "a branch on tracers": (
        Base(before=lambda x, train: x * (1 + isinstance(x, jax.core.Tracer))),
        {"logits": "the compiled network has other logits"},
    ),
    "large logits": (
        Base(after=lambda x, train: 100 * x),
        {"logits": "the initial loss is 33.3, where equal"},
    ),
    "a mean over the batch": (
        Base(before=lambda x, train: x - x.mean(0)[None]),
        {"batch": "in evaluation .* in batches of 1 and 16 images", "devices": ""},
    ),
    "a mean over the batch in training": (
        Base(before=lambda x, train: x - train * x.mean(0)[None]),
        {"batch": "in training .* the other images", "devices": ""},
    ),
    "a constant mask": (Base(between=masked), {"random": "in training do not come"}),
    "a key from outside": (
        Base(between=masked_from_outside),
        {"random": "a random key comes from outside"},
    ),
    "a key used twice": (
        Base(between=lambda x, train: MaskedTwice()(x, train)),
        {"random": "a random key is used twice"},
    ),
    "a wrong custom_vjp": (
        Base(between=lambda x, train: bent(x)),
        {"gradients": "gradient of Dense_0/bias is wrong: .*custom_vjp"},
    ),
    "no gradient": (
        Base(between=lambda x, train: jax.lax.stop_gradient(nn.relu(x))),
        {"learns": "Dense_0/bias did not change in 200 steps"},
    ),
    "an unused parameter": (
        Base(before=not_used),
        {"learns": "params/Dense_1/bias did not change .* do not depend on it"},
    ),
    "statistics that are not updated": (
        NotUpdated,
        {"learns": "norm/mean did not .* use_running_average"},
    ),
    "a constant": (
        Base(before=lambda x, train: 0 * x + 1),
        {"learns": "200 steps of Adam fit 38% of 32 images"},
    ),
    "an ignored offset": (
        IgnoredOffset(),
        {"devices": "loss_sum differs in 1 of 1 values"},
    ),
    "operands far from 0": (
        Base(before=projected_far_from_0),
        {"precision": "precision=bfloat16 the logits change by"},
    ),
    "two parameters of one name": (
        SameName(),
        {"saved": "cannot be saved and loaded"},
    ),
}


def failures(network, names=CHECKS):
    """Returns the messages of the checks that a network fails, by name."""
    found = {}
    for name in names:
        try:
            check_model(network, SHAPE, CLASSES, checks=[name])
        except AssertionError as error:
            found[name] = str(error)
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_fails_its_checks_only(fault):
    network, expected = FAULTS[fault]
    found = failures(network)
    assert found.keys() == expected.keys(), found
    for name, message in expected.items():
        assert re.search(message, found[name]), found[name]


@pytest.mark.parametrize(
    "fault, message",
    [
        (
            dict(after=lambda x, train: x.argmax(-1)),
            r"must return logits \[1, 3\]",
        ),
        (dict(before=dropped_always), "give nn.Dropout deterministic=not train"),
        (
            dict(before=lambda x, train: nn.BatchNorm(False)(x)),
            "nn.BatchNorm use_running_average=not train",
        ),
        (dict(before=normalized), "logits in evaluation are not finite for a black"),
    ],
)
def test_a_fault_that_fails_most_checks_is_named_by_the_first(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_model(Base(**fault), SHAPE, CLASSES)


@pytest.mark.parametrize("check", CHECKS)
def test_a_check_runs_alone(check):
    subject.create_network.cache_clear()
    assert not failures(Base(), [check])


def test_what_is_no_network_or_check_is_an_input_error():
    for network in (lambda images: images, Nnx(16, CLASSES, rngs=nnx.Rngs(0))):
        with pytest.raises(InputError, match="check_model takes a linen module"):
            check_model(network, SHAPE, CLASSES)
    for checks in ("call", ["calls", "call"]):
        with pytest.raises(InputError, match="call is not one of the checks"):
            check_model(Base(), SHAPE, CLASSES, checks=checks)


def test_losses_that_are_not_finite_are_found():
    root = Base(between=lambda x, train: jnp.sqrt(x**2))  # its slope at 0
    found = failures(root, ["learns"])
    assert "losses are not finite" in found["learns"]


def test_faults_of_this_project_are_found(monkeypatch):
    """Of the compiled epoch and of seeds, which no network can cause alone."""
    start, take = Programs.init_run, epochs.gather

    def without_mask(split, indices):
        images, labels, mask = take(split, indices)
        return images, labels, jnp.ones_like(mask)

    def of_one_seed(programs, seeds):
        return start(programs, [seeds[0]] * len(seeds))

    for owner, name, fault, check in (
        (epochs, "gather", without_mask, "epoch"),
        (Programs, "init_run", of_one_seed, "seeds"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fault)
            found = failures(Base(name=name), ["epoch", "seeds"])
        assert found.keys() == {check}


class Nnx(nnx.Module):
    def __init__(self, width: int, classes: int, *, rngs: nnx.Rngs):
        self.first = nnx.LoRALinear(30, width, lora_rank=2, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.8, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, images):
        x = self.norm(self.first(images.reshape(len(images), -1)))
        return self.last(self.dropout(nnx.relu(x)))


class Half(nn.Module):
    @nn.compact
    def __call__(self, images):
        out = nn.Dense(CLASSES, dtype="bfloat16", param_dtype="bfloat16")
        return out(images.reshape(len(images), -1))


class Recurrent(nn.Module):
    """Has a loop whose state is always float32."""

    @nn.compact
    def __call__(self, images):
        return nn.Dense(CLASSES)(nn.RNN(nn.GRUCell(16))(images)[:, -1])


@pytest.mark.parametrize(
    "network, model_args",
    [
        (Base, []),
        (f"{__name__}:Nnx", ["width=16"]),
        (Half, []),
        (Recurrent, []),
        # By two algorithms, then with batch normalization.
        (CNN((ConvStage(8), ConvStage(32)), (16,), CLASSES), []),
        (CNN((ConvStage(4, pool=2, bn=True),), (8,), CLASSES), []),
        (MLP((16,), CLASSES, dropout=(0.5,)), []),
        (LSTM((8, 8), "tanh", (8,), CLASSES, impl="cpu"), []),
    ],
)
def test_right_networks_pass(network, model_args):
    check_model(network, SHAPE, CLASSES, model_args)


NARROW = {"vgg": ["filters=(4", "8)"], "convnext": ["width=8"], "resnet": ["width=4"]}


@pytest.mark.programs
@pytest.mark.parametrize(
    "network", [*MODELS, "examples/residual_mlp.py:ResidualMLP", *EXAMPLES]
)
def test_built_in_networks_and_examples_pass(network):
    check_model(network, model_args=NARROW.get(Path(network).stem, []))


def test_a_network_is_created_and_compiled_once(tmp_path):
    check_model(Base, SHAPE, CLASSES, checks=["logits"])
    with no_compiling():
        check_model(Base, SHAPE, CLASSES, checks=["saved"])
