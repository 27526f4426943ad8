"""Collections that training updates without gradients, as of batch normalization."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers.runs import train_into

from mnist_jax import TrainConfig, check_model
from mnist_jax.config import ConvStage
from mnist_jax.data.batches import epoch_indices
from mnist_jax.data.types import IMAGE_SHAPE, MNIST
from mnist_jax.models.flops import multiply_adds
from mnist_jax.models.networks import CNN, count_params, create_model
from mnist_jax.reporting.summary import layer_frame
from mnist_jax.testing import check_same_tree, make_split, preprocess
from mnist_jax.training.epochs import gather, make_programs
from mnist_jax.training.fit import Epoch, finish, fit
from mnist_jax.training.mesh import make_mesh, replicate, seed_keys, shard_seeds
from mnist_jax.training.prepare import prepare
from mnist_jax.training.run_dir import load_run
from mnist_jax.training.steps import TrainState, init_state, train_step

pytestmark = pytest.mark.slow


class Normalized(nn.Module):
    """A network with batch normalization, as a user writes it."""

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(8)(images.reshape(len(images), -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.8)(x)
        return nn.Dense(10)(nn.relu(x))


CONFIG = TrainConfig(
    model="cnn",
    conv=("4:pool2:bn", "8:pool2"),
    hidden=(),
    dataset="digits",
    epochs=2,
    cpu_devices=2,
)


def test_a_network_with_batch_statistics_passes_check_model():
    check_model(CNN((ConvStage(4, pool=2, bn=True),), (8,), 10, impl="cpu"))


def plain_step(state: TrainState, batch, model, tx) -> TrainState:
    """Returns the state after a step of plain Flax, on batches of several devices."""

    def loss_fn(params):
        loss, stats, images = 0.0, [], []
        for pictures, labels, mask in batch:
            logits, updated = model.apply(
                {"params": params, **state.stats},
                pictures,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            loss += jnp.sum(losses * mask)
            stats.append(updated)
            images.append(float(mask.sum()))
        weights = np.array(images) / sum(images)
        mean = jax.tree.map(
            lambda *s: sum(w * x for w, x in zip(weights, s, strict=True)), *stats
        )
        return loss / sum(images), mean

    grads, stats = jax.grad(loss_fn, has_aux=True)(state.params)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    return TrainState(optax.apply_updates(state.params, updates), stats, opt_state)


@pytest.mark.parametrize("devices", [1, 2])
def test_epochs_of_seeds_equal_plain_flax(devices):
    """Each device normalizes its share; the running statistics are their mean."""
    model, split, tx = Normalized(), make_split(40), optax.sgd(0.1)
    programs = make_programs(model, tx, preprocess, make_mesh(devices), IMAGE_SHAPE)
    init = partial(init_state, model, tx, image_shape=IMAGE_SHAPE)
    states = jax.vmap(init)(seed_keys([0, 1]))
    orders = np.stack([epoch_indices(seed, 0, 40, 16) for seed in (0, 1)])
    got, _ = programs.run_steps(
        shard_seeds(jax.tree.map(jnp.copy, states), programs.mesh),
        replicate(split, programs.mesh),
        programs.shard(orders),
        shard_seeds(seed_keys([5, 6]), programs.mesh),
    )
    for seed in (0, 1):
        state = jax.tree.map(lambda leaf, i=seed: leaf[i], states)
        for row in orders[seed]:
            shares = np.split(row, 1 if programs.mesh.shape["batch"] == 1 else devices)
            shares = [gather(split, jnp.asarray(share)) for share in shares]
            batch = [(preprocess(x), labels, mask) for x, labels, mask in shares]
            state = plain_step(state, batch, model, tx)
        check_same_tree(jax.tree.map(lambda x, i=seed: x[i], got), state, 1e-4)


def test_microbatches_average_the_statistics():
    model = CNN((ConvStage(4, pool=2, bn=True),), (), 10)
    tx, split = optax.sgd(0.1), make_split(12)
    state = init_state(model, tx, jax.random.key(0), IMAGE_SHAPE)
    batch = preprocess(split.images), split.labels, jnp.ones(12), jax.random.key(0)
    step = partial(train_step, state, *batch, model=model, tx=tx)
    got, _ = jax.jit(partial(step, microbatches=3))()
    halves = [
        (batch[0][i : i + 4], batch[1][i : i + 4], jnp.ones(4)) for i in (0, 4, 8)
    ]
    check_same_tree(got, plain_step(state, halves, model, tx), 1e-4)


def test_resumed_and_loaded_runs_keep_the_statistics(digits, tmp_path):
    whole = prepare(CONFIG, digits)
    events = fit(whole, [0])
    first = next(event for event in events if isinstance(event, Epoch))
    checkpoint = jax.device_get(first.checkpoint)  # donated to the next epoch
    [(record, variables)] = finish(events)
    [(again, _)] = finish(fit(whole, [0], resume=checkpoint))
    assert again.params_sha256 == record.params_sha256
    stats = variables["batch_stats"]["BatchNorm_0"]
    assert np.all(stats["var"] != 1.0) and np.all(stats["mean"] != 0.0)
    train_into(whole, {0: tmp_path})
    run = load_run(tmp_path)
    check_same_tree(run.variables, jax.device_get(variables), 0.0)


def test_summaries_and_flops_know_batch_normalization():
    names = ["Conv_0", "BatchNorm_0", "Conv_1", "Dense_0"]
    frame = layer_frame(CONFIG, MNIST)
    assert frame["parameters"].sum() == count_params(
        create_model(CONFIG, MNIST), IMAGE_SHAPE
    )
    assert frame["layer"].tolist() == names
    assert frame["multiply-adds"].sum() == sum(multiply_adds(CONFIG, MNIST))
