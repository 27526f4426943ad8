"""Checks of a network: a linen module, the class of one or of an NNX module."""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.errors import FlaxError

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import CLASSES, IMAGE_SHAPE, Shapes
from mnist_jax.errors import InputError
from mnist_jax.models.custom import call_options, network_sha256
from mnist_jax.models.networks import apply_model, check_network
from mnist_jax.models.rewrite import without_rewriting
from mnist_jax.testing.gradients import check_slopes
from mnist_jax.testing.steps import preprocess
from mnist_jax.testing.subject import (
    IMAGES,
    STEPS,
    TOLERANCE,
    TX,
    Network,
    create_network,
    epoch_order,
    first_seed,
)
from mnist_jax.testing.trees import (
    assert_trees_close,
    draws_random_numbers,
    explained,
    named,
    other_constant_keys,
    require,
    require_known,
    require_new_keys,
)
from mnist_jax.training.checkpoints import load_params, params_sha256, save_params
from mnist_jax.training.epochs import QUICK, compute_logits, gather, jit
from mnist_jax.training.prepare import differ, find_batch_dependence
from mnist_jax.training.steps import cross_entropy, train_step


def check_calls(network: Network) -> None:
    """Asserts that images become logits `[B,classes]`, with `dropout` the only key."""
    try:
        check_network(network.name, without_rewriting(network.model), network.shapes)
    except InputError as error:
        raise AssertionError(str(error)) from error
    except FlaxError as error:  # such as of a random key, or an update in evaluation
        advice = (
            "give nn.Dropout deterministic=not train, nn.BatchNorm "
            "use_running_average=not train, and draw from `dropout` only"
        )
        raise AssertionError(f"{network.name}: {error}; {advice}") from error


def check_logits(network: Network) -> None:
    """Asserts finite logits in evaluation, the same compiled and op by op."""
    images, labels = network.batch
    plain = without_rewriting(network.model)
    variables, compiled = network.filled, network.logits(network.filled, images)
    options: Any = dict(model=plain, preprocess=preprocess)
    eager = np.asarray(compute_logits(variables, jnp.asarray(images), **options))
    finite = np.isfinite(eager).all(axis=1)
    kinds = "a black image", "a white image", "an image with black rows"
    kind = kinds[min(int(np.argmin(finite)), 2)]
    require(finite.all(), f"logits in evaluation are not finite for {kind}")
    require(
        eager.min() < 0 or np.abs(eager.sum(axis=1) - 1).max() > 0.01,
        "the outputs are probabilities, which add up to 1; return logits, without "
        "a softmax",
    )
    require(
        not differ(np.asarray(compiled), eager),
        "the compiled network has other logits in evaluation than its operations one "
        "by one: a fault of XLA, or an operation without a defined result",
    )
    logits = network.logits(network.variables, images)
    loss = np.mean(cross_entropy(logits, jnp.asarray(labels)))
    usual = math.log(network.shapes.classes)
    require(
        loss < 2 * usual + 1,
        f"the initial loss is {loss:.3g}, where equal probabilities have {usual:.3g}; "
        "scale the initial kernels by the number of inputs",
    )


def _train_logits(model: nn.Module, variables: Any, images: Any, key: Any) -> jax.Array:
    options: Any = dict(train=True, dropout_key=key)
    logits, _ = apply_model(model, variables, preprocess(images), **options)
    return logits.astype(jnp.float32)


def check_batch(network: Network) -> None:
    """Asserts that an image's logits do not depend on the batch it is in.

    In training they may depend on the image's index in the batch, as dropout masks do,
    and with batch statistics (`nn.BatchNorm`) on the other images.
    """
    model, variables, images = network.model, network.filled, network.batch.images
    arguments = model, preprocess, network.variables, images  # fills zeros itself
    fault = find_batch_dependence(*arguments, sizes=(1, 7))
    require(not fault, fault)
    if len(network.variables) > 1:  # batch statistics
        return
    others = images.copy()
    others[:8] = images[:7:-1]
    run, key = jit(partial(_train_logits, model), QUICK), jax.random.key(0)
    first, second = (np.asarray(run(variables, x, key)) for x in (images, others))
    require(
        not differ(second[8:], first[8:]),
        "in training the logits of an image depend on the other images of the batch; "
        "compute them from each image alone (nn.Conv and pooling need a channel axis, "
        "as in images[..., None])",
    )


def check_random(network: Network) -> None:
    """Asserts that random numbers come from the key, and only in training."""
    batch, key = (network.filled, network.batch.images), jax.random.key(0)
    train = partial(_train_logits, network.model)
    runs = {
        "training": partial(jit(train, QUICK), *batch, key),
        "evaluation": partial(network.logits, *batch),
    }
    advice = (
        'draw them from self.make_rng("dropout"), in NNX from the rngs of __init__, '
        "and in training only"
    )
    for mode, run in runs.items():
        first, again = np.asarray(run()), np.asarray(run())
        same = np.array_equal(first, again, equal_nan=True)
        require(same, f"in {mode} two calls with the same key have other logits")
        with other_constant_keys():
            same = np.array_equal(first, run(), equal_nan=True)
        message = f"the random numbers in {mode} do not come from the dropout key"
        require(same, f"{message}; {advice}")
    plain = without_rewriting(network.model)
    require_new_keys(partial(_train_logits, plain), *batch, key)


def check_gradients(network: Network) -> None:
    """Asserts that gradients are the slopes of the loss; see `check_slopes`."""
    check_slopes(network.model, network.filled, network.shapes)


def check_learns(network: Network) -> None:
    """Asserts that 200 steps fit 32 images, and change every variable."""
    before = first_seed(network.start([0])[0]).variables
    states, metrics = network.train([0], STEPS)
    after, metrics = first_seed(states).variables, first_seed(jax.device_get(metrics))
    losses = metrics.loss_sum / metrics.images
    require(np.isfinite(losses).all(), f"losses are not finite: {losses[:10]}")
    reasons = {
        "params": "the logits do not depend on it, or only through operations that "
        "have no gradient",
        "batch_stats": "give batch normalization use_running_average=not train",
    }
    for name, new in named(after).items():
        require(np.isfinite(new).all(), f"{name} is not finite")
        if reason := reasons.get(name.split("/")[0]):
            message = f"{name} did not change in {STEPS} steps: {reason}"
            require(np.any(named(before)[name] != new), message)
    images, labels = network.split
    # Running statistics may be far from those of the batch, and dropout disturbs.
    right = np.argmax(network.logits(after, images), axis=1) == labels
    accuracy = max(
        metrics.correct[-20:].sum() / metrics.images[-20:].sum(), right.mean()
    )
    require(
        accuracy >= 0.95,
        f"{STEPS} steps of Adam fit {accuracy:.0%} of {IMAGES} images, not 95 %; the "
        f"loss went from {losses[0]:.3g} to {losses[-1]:.3g}",
    )


def check_epoch(network: Network) -> None:
    """Asserts that a compiled epoch gives the same as a Python loop over its steps."""
    with explained("a compiled epoch does not give the result of its steps"):
        _compare_with_loop(network, 3)


def check_devices(network: Network) -> None:
    """Asserts that two devices give the same as one.

    A network that draws random numbers but does not take `batch_offset=` has another
    key on each device, and batch statistics are those of a device's images. Both are
    compared with two microbatches on one device.
    """
    message = "JAX has one device; use the plugin, or mnist_jax.setup(cpu_devices=2)"
    require(jax.device_count() > 1, message)
    batch = network.filled, network.batch.images, jax.random.key(0)
    shared = len(network.variables) > 1
    if "batch_offset" not in call_options(network.model, True, 0):
        shared |= draws_random_numbers(partial(_train_logits, network.model), *batch)
    # Padding has other images there, which batch statistics notice.
    with explained("two devices do not give the result of one"):
        _compare_with_loop(network, 2, devices=2, microbatches=2 if shared else 1)


def _compare_with_loop(
    network: Network, steps: int, devices: int = 1, microbatches: int = 1
) -> None:
    states, metrics = network.train([0], steps, devices)
    state, key = map(first_seed, network.start([0]))
    options: Any = dict(model=network.model, tx=TX, microbatches=microbatches)
    step = jit(partial(train_step, **options))
    for i, row in enumerate(epoch_order(0)[:steps]):
        images, labels, mask = gather(network.split, jnp.asarray(row))
        step_key = jax.random.fold_in(key, i)
        state, want = step(state, preprocess(images), labels, mask, step_key)
        got = jax.tree.map(lambda history, i=i: history[0, i], metrics)
        assert_trees_close(got, want, 1e-4, equal_nan=True)
    got, want = first_seed(states).variables, state.variables
    assert_trees_close(got, want, 1e-4, TOLERANCE, equal_nan=True)


def check_seeds(network: Network) -> None:
    """Asserts that seeds trained together give the same as each alone."""
    together, _ = network.train([0, 1], 3)
    for seed in (0, 1):
        got = jax.tree.map(itemgetter(seed), together.variables)
        alone, _ = network.train([seed], 3)
        want = first_seed(alone).variables
        with explained(f"seed {seed}, trained with another, differs from it alone"):
            assert_trees_close(got, want, 1e-4, TOLERANCE, equal_nan=True)


def check_precision(network: Network) -> None:
    """Asserts that logits with products of bfloat16 are near those with float32."""
    run = jit(partial(compute_logits, model=network.rounded, preprocess=preprocess))
    rounded = np.asarray(run(network.filled, network.batch.images))
    exact = np.asarray(network.logits(network.filled, network.batch.images))
    error = np.abs(rounded - exact).max() / np.abs(exact).max()
    require(
        not error > 0.1,
        f"with precision=bfloat16 the logits change by {error:.0%}: small differences "
        "of large numbers are lost; normalize the inputs of layers",
    )


def check_saved(network: Network) -> None:
    """Asserts that the variables, saved and loaded, give the same bits."""
    variables = network.filled
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.msgpack"
        try:
            save_params(path, variables)
            loaded = load_params(path, variables, params_sha256(variables))
        except (InputError, TypeError, ValueError) as error:
            message = f"the variables cannot be saved and loaded: {error}"
            raise AssertionError(message) from error
    got, want = (
        network.logits(each, network.batch.images) for each in (loaded, variables)
    )
    same = np.array_equal(got, want, equal_nan=True)
    require(same, "loaded variables have other logits")


CHECKS: Mapping[str, Callable[[Network], None]] = {
    check.__name__.removeprefix("check_"): check
    for check in (
        *(check_calls, check_logits, check_batch, check_random, check_gradients),
        *(check_learns, check_epoch, check_devices, check_seeds),
        *(check_precision, check_saved),
    )
}


def check_model(
    network: Any,
    image_shape: tuple[int, ...] = IMAGE_SHAPE,
    classes: int = CLASSES,
    model_args: Sequence[str] = (),
    checks: Sequence[str] | None = None,
) -> None:
    """Checks a network.

    Args:
        network: a linen module, the class of a linen or NNX module, or a text as for
            `TrainConfig.model`, such as "FILE:CLASS".
        image_shape: height and width of its images.
        classes: number of its classes.
        model_args: as of `TrainConfig`, for a class.
        checks: some of `CHECKS`, in this order; default: all of them, without "devices"
            if JAX has only one.

    Raises:
        AssertionError: a check fails.
    """
    shapes, sha256 = Shapes(image_shape, classes), None
    if isinstance(network, str):
        sha256 = network_sha256(TrainConfig(model=network))
    if checks is None:
        checks = [n for n in CHECKS if n != "devices" or jax.device_count() > 1]
    require_known(checks, CHECKS)
    for name in checks:
        CHECKS[name](create_network(network, tuple(model_args), shapes, sha256))
