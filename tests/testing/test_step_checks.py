"""The checks of step functions: which faults each finds, and that right steps pass."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import linen as nn

from mnist_jax import init_state, train_step
from mnist_jax.config import ConvStage
from mnist_jax.models.networks import CNN, LSTM, MLP
from mnist_jax.testing import STEP_CHECKS, check_step, make_batch

SHAPE, CLASSES = (6, 5), 3
BATCH = make_batch(12, SHAPE, CLASSES)
calls, KEY = itertools.count(), jax.random.key(0)


class Attention(nn.Module):
    """A network whose keys have a bias with a gradient of 0, and dropout."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, images, train):
        x = nn.MultiHeadDotProductAttention(2, qkv_features=8)(nn.Dense(8)(images))
        x = nn.Dropout(self.rate, deterministic=not train)(x)
        return nn.Dense(CLASSES)(x.reshape(len(x), -1))


RIGHT = {
    "mlp": MLP((8,), CLASSES),
    "dropout": MLP((8,), CLASSES, (0.5,)),
    "lstm": LSTM((8,), "tanh", (), CLASSES),
    "batch norm": CNN((ConvStage(4, bn=True),), (), CLASSES),
    "attention": Attention(),
    "attention with dropout": Attention(0.5),
}


@pytest.mark.parametrize("model", RIGHT.values(), ids=list(RIGHT))
def test_right_steps_pass(model):
    tx = optax.adam(1e-2)
    state = init_state(model, tx, jax.random.key(0), SHAPE)
    check_step(partial(train_step, model=model, tx=tx), state, BATCH)


def test_a_jitted_step_that_donates_passes():
    model, tx = RIGHT["mlp"], optax.sgd(0.1)
    step = jax.jit(partial(train_step, model=model, tx=tx), donate_argnums=0)
    check_step(step, init_state(model, tx, jax.random.key(0), SHAPE), BATCH)


def make_step(
    weigh=lambda loss, mask: loss * mask,
    count=lambda images, mask: mask.sum(),
    noise=None,
    penalty=lambda logits: 0.0,
    gradient=lambda name, gradient: gradient,
    results=lambda state, metrics: (state, metrics),
):
    """Returns a step of a linear model as users write it; an argument makes a fault."""

    def loss_fn(params, images, labels, mask, key):
        x = images.reshape(len(images), -1)
        if noise is not None:
            x = x + 0.1 * noise(key, x.shape[1:])[None]
        logits = x @ params["kernel"] + params["bias"][None]
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        total = weigh(loss, mask).sum()
        return total / count(images, mask) + penalty(logits), total

    def step(state, images, labels, mask, key):
        batch = images, labels, mask, key
        grads, total = jax.grad(loss_fn, has_aux=True)(state["params"], *batch)
        params = {
            name: value - 0.1 * gradient(name, grads[name])
            for name, value in state["params"].items()
        }
        metrics = {"loss": total, "images": mask.sum()}
        return results({**state, "params": params}, metrics)

    return step


def make_state():
    params = {"kernel": jnp.zeros((30, CLASSES)), "bias": jnp.zeros(CLASSES)}
    return {"params": params, "steps": jnp.zeros((), jnp.int32)}


@pytest.mark.parametrize("noise", [None, jax.random.normal])
def test_a_step_of_the_users_own_passes(noise):
    check_step(make_step(noise=noise), make_state(), BATCH)


def test_a_step_with_the_key_in_its_state_passes():
    def step(state, images, labels, mask, key):
        key, used = jax.random.split(state["key"])
        inner = {name: state[name] for name in ("params", "steps")}
        new, metrics = dropping(inner, images, labels, mask, used)
        return new | {"key": key}, metrics

    dropping = make_step(noise=jax.random.normal)
    check_step(step, make_state() | {"key": jax.random.key(1)}, BATCH)


def changed_in_place(state, *batch):
    new, metrics = make_step()(state, *batch)
    state["params"] = new["params"]
    return state, metrics


def jitted_in_each_call(state, *batch):
    return jax.jit(make_step())(state, *batch)


def only_traced(loss, mask):
    return loss * mask * (1 + isinstance(mask, jax.core.Tracer))


def drawn_twice(key, shape):
    return jax.random.normal(key, shape) + jax.random.uniform(key, shape)


FAULTS = {
    "an integer becomes a float": (
        make_step(results=lambda s, m: (s | {"steps": s["steps"] + 1.0}, m)),
        {
            "types": r"steps is float32\[\] \(weak type\), not int32\[\]",
            "compiles_once": "JAX compiled",
        },
    ),
    "a weak type": (
        jax.jit(make_step(results=lambda s, m: (s | {"steps": 1}, m))),
        {
            "types": r"steps is int32\[\] \(weak type\), not int32",
            "compiles_once": r"JAX compiled jit\(step\)",
        },
    ),
    "a leaf is lost": (
        make_step(results=lambda s, m: ({"params": s["params"]}, m)),
        {"types": r"steps is missing, not int32\[\]"},
    ),
    "hidden state": (
        make_step(weigh=lambda loss, mask: loss * mask * next(calls)),
        {
            "pure": "a second call gives another result",
            "jit": "without jit the step computes otherwise",
            "random": "do not depend on its key",
            "padding": "whose mask is 0",
        },
    ),
    "a state changed in place": (changed_in_place, {"pure": "in place"}),
    "a jit in each call": (
        jitted_in_each_call,
        {"compiles_once": r"JAX compiled jit\(step\)"},
    ),
    "a branch on tracers": (
        make_step(weigh=only_traced),
        {"jit": "without jit the step computes otherwise"},
    ),
    "a constant key": (
        make_step(noise=lambda key, shape: jax.random.normal(jax.random.key(0), shape)),
        {"random": "do not depend on its key"},
    ),
    "a key used twice": (
        make_step(noise=drawn_twice),
        {"random": "a random key is used twice"},
    ),
    "a mask ignored": (
        make_step(weigh=lambda loss, mask: loss),
        {"padding": "multiply what depends on them", "sums": "do not add up"},
    ),
    "len(images) as a number": (
        make_step(count=lambda images, mask: len(images)),
        {"padding": r"divide by its sum, not by len\(images\)"},
    ),
    "a penalty of padding": (
        make_step(penalty=lambda logits: jnp.mean((logits + 1) ** 2)),
        {"padding": "whose mask is 0"},
    ),
    "a key from outside": (
        make_step(noise=lambda key, shape: jax.random.normal(KEY, shape)),
        {"random": "a random key comes from outside"},
    ),
    "a weight by position": (
        make_step(weigh=lambda loss, mask: loss * mask * jnp.arange(len(loss))),
        {"order": "depends on the order of the images"},
    ),
    "means for metrics": (
        make_step(results=lambda s, m: (s, {"loss": m["loss"] / m["images"]})),
        {"sums": "return sums over images"},
    ),
    "a bias that never moves": (
        make_step(gradient=lambda name, g: 0 * g if name == "bias" else g),
        {"learns": "bias did not change"},
    ),
    "the wrong sign": (
        make_step(gradient=lambda name, g: -g),
        {"learns": "did not lower the loss"},
    ),
    "a loss that is not finite": (
        make_step(weigh=lambda loss, mask: jnp.where(mask, jnp.log(loss - loss), 0)),
        {"learns": "losses are not finite"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_fails_its_checks_only(fault):
    step, expected = FAULTS[fault]
    found = {}
    for name in STEP_CHECKS:
        try:
            check_step(step, make_state(), BATCH, checks=[name])
        except AssertionError as error:
            found[name] = str(error)
    assert found.keys() == expected.keys(), found
    for name, message in expected.items():
        assert re.search(message, found[name]), found[name]
