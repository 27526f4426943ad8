"""Augmentation, label smoothing and averaged parameters inside compiled epochs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage

from mnist_jax.config import ConvStage, TrainConfig
from mnist_jax.data.augment import Augmentation
from mnist_jax.data.batches import epoch_indices
from mnist_jax.data.types import CLASSES, IMAGE_SHAPE
from mnist_jax.models.networks import CNN, LSTM, MLP
from mnist_jax.models.rewrite import Rewritten, without_rewriting
from mnist_jax.testing import assert_trees_close
from mnist_jax.testing.steps import make_split, preprocess
from mnist_jax.training.epochs import AUGMENT, gather, make_programs
from mnist_jax.training.fit import finish, fit
from mnist_jax.training.mesh import make_mesh, replicate, seed_keys, shard_seeds
from mnist_jax.training.optimizers import average_params, final_variables
from mnist_jax.training.prepare import prepare
from mnist_jax.training.steps import init_state, train_step

MODELS = {
    "mlp": MLP((16,), CLASSES, dropout=(0.5,)),
    "lstm": LSTM((8,), "tanh", (), CLASSES, impl="cpu"),
    "cnn": Rewritten(CNN((ConvStage(8, pool=2),), (16,), CLASSES, (0.5,))),
}
RECIPE = dict(
    augment=Augmentation(("shift2", "rotate10", "erase")),
    label_smoothing=0.1,
    classes=CLASSES,
)


# Devices for batches and for seeds. 23 images are not shared evenly; shares of 12 and
# 11 are in microbatches of at most 5: three of 4, padded.
@pytest.mark.parametrize(
    "name, devices, batch_size",
    [("mlp", (8, 1), 23), ("lstm", (2, 1), 23), ("cnn", (2, 2), 22)],
)
def test_epochs_of_seeds_equal_plain_loops(name, devices, batch_size, monkeypatch):
    """With dropout, microbatches, several seeds and devices, and an average."""
    model, split = MODELS[name], make_split(64)
    if name != "mlp":
        monkeypatch.setattr(type(without_rewriting(model)), "microbatch", 5)
    tx = average_params(optax.sgd(0.1), 0.9)
    mesh = make_mesh(*devices)
    programs = make_programs(model, tx, preprocess, mesh, IMAGE_SHAPE, **RECIPE)
    init = partial(init_state, model, tx, image_shape=IMAGE_SHAPE)
    states = jax.vmap(init)(seed_keys([0, 1]))
    keys = jax.random.split(jax.random.key(7), 2)
    orders = np.stack([epoch_indices(s, 0, 64, batch_size) for s in (0, 1)])
    got, metrics = programs.run_steps(
        shard_seeds(jax.tree.map(jnp.copy, states), programs.mesh),
        replicate(split, programs.mesh),
        programs.shard(orders),
        shard_seeds(keys, programs.mesh),
    )
    step = jax.jit(partial(train_step, model=model, tx=tx))
    averaged = final_variables(got)
    for seed in (0, 1):
        state, history = jax.tree.map(lambda leaf, i=seed: leaf[i], states), []
        for i, row in enumerate(orders[seed]):
            images, labels, mask = gather(split, jnp.asarray(row))
            key = jax.random.fold_in(keys[seed], i)
            images = RECIPE["augment"](images, jax.random.fold_in(key, AUGMENT))
            smoothed = 0.9 * jax.nn.one_hot(labels, 10) + 0.01
            state, plain = step(state, preprocess(images), smoothed, mask, key)
            np.testing.assert_allclose(
                metrics.loss_sum[seed, i], plain.loss_sum, rtol=1e-4
            )
            history.append(state.variables)
        weights = 0.9 ** np.arange(len(history), dtype=np.float32)[::-1]
        average = jax.tree.map(
            lambda *leaves, w=weights: sum(map(jnp.multiply, w, leaves)) / w.sum(),
            *history,
        )
        pair = jax.tree.map(lambda leaf, i=seed: leaf[i], (got, averaged))
        assert_trees_close(pair, (state, average), 1e-4)


def test_tta_averages_probabilities_over_shifts(digits):
    config = TrainConfig(hidden=(16,), dataset="digits", epochs=2, tta=1)
    experiment = prepare(config, digits)
    [(record, variables)] = finish(fit(experiment, [0]))
    test, total = experiment.dataset.test, np.zeros((len(digits.test.labels), 10))
    for y in (-1, 0, 1):
        for x in (-1, 0, 1):
            shifted = ndimage.shift(test.images, (0, y, x), order=0)
            images = np.float32(shifted) / 255
            logits = experiment.model.apply(variables, images)
            total += np.asarray(jax.nn.softmax(logits))
    assert record.tta_accuracy == np.mean(total.argmax(axis=1) == test.labels)
