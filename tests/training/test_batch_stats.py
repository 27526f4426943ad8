"""Collections that training updates without gradients, as of batch normalization."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers.runs import train_into

from mnist_jax import TrainConfig
from mnist_jax.config import ConvStage
from mnist_jax.data.batches import epoch_indices
from mnist_jax.data.types import IMAGE_SHAPE
from mnist_jax.models.networks import CNN
from mnist_jax.testing import assert_trees_close
from mnist_jax.testing.steps import make_split, preprocess
from mnist_jax.training.epochs import gather, make_programs
from mnist_jax.training.fit import Epoch, finish, fit
from mnist_jax.training.mesh import make_mesh, replicate, seed_keys, shard_seeds
from mnist_jax.training.prepare import prepare
from mnist_jax.training.run_dir import load_run
from mnist_jax.training.steps import TrainState, init_state, train_step

MODEL = CNN((ConvStage(4, pool=2, bn=True),), (), 10)
CONFIG = TrainConfig(
    model="cnn",
    conv=("4:pool2:bn", "8:pool2"),
    hidden=(),
    dataset="digits",
    epochs=2,
    cpu_devices=2,
)


def plain_step(state: TrainState, batch, tx) -> TrainState:
    """Returns the state after a step of plain Flax, on batches of several devices."""

    def loss_fn(params):
        loss, stats, images = 0.0, [], []
        for pictures, labels, mask in batch:
            logits, updated = MODEL.apply(
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


def test_epochs_of_seeds_equal_plain_flax():
    """Each device normalizes its share; the running statistics are their mean."""
    split, tx = make_split(40), optax.sgd(0.1)
    programs = make_programs(MODEL, tx, preprocess, make_mesh(2), IMAGE_SHAPE)
    init = partial(init_state, MODEL, tx, image_shape=IMAGE_SHAPE)
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
            shares = [gather(split, jnp.asarray(share)) for share in np.split(row, 2)]
            batch = [(preprocess(x), labels, mask) for x, labels, mask in shares]
            state = plain_step(state, batch, tx)
        assert_trees_close(jax.tree.map(lambda x, i=seed: x[i], got), state, 1e-4)


def test_microbatches_average_the_statistics():
    tx, split = optax.sgd(0.1), make_split(12)
    state = init_state(MODEL, tx, jax.random.key(0), IMAGE_SHAPE)
    batch = preprocess(split.images), split.labels, jnp.ones(12), jax.random.key(0)
    step = partial(train_step, state, *batch, model=MODEL, tx=tx)
    got, _ = jax.jit(partial(step, microbatches=3))()
    halves = [
        (batch[0][i : i + 4], batch[1][i : i + 4], jnp.ones(4)) for i in (0, 4, 8)
    ]
    assert_trees_close(got, plain_step(state, halves, tx), 1e-4)


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
    assert_trees_close(run.variables, jax.device_get(variables), 0.0)
