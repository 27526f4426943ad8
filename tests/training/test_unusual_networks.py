"""Networks with unusual parameters, and networks that are not finite."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
from helpers.custom_networks import config_of
from helpers.runs import resumable, train_into

from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Dataset
from mnist_jax.errors import InputError
from mnist_jax.export.formats import export_run
from mnist_jax.models.networks import create_model
from mnist_jax.testing import assert_trees_close, check_step, make_batch
from mnist_jax.testing.steps import make_split, preprocess
from mnist_jax.training.epochs import predict_images
from mnist_jax.training.fit import finish, fit
from mnist_jax.training.mesh import make_mesh
from mnist_jax.training.optimizers import average_params, final_variables
from mnist_jax.training.prepare import prepare
from mnist_jax.training.run_dir import load_run
from mnist_jax.training.steps import init_state, train_step


@pytest.mark.parametrize("name", ["Mixed16", "Nested"])
def test_runs_of_any_parameter_tree_are_resumed_loaded_and_exported(
    networks, digits: Dataset, name, tmp_path
):
    config = config_of(networks, name, ema=0.9, train_size=256, epochs=2)
    experiment, folders = prepare(config, digits, mesh=make_mesh(1)), {0: tmp_path}
    train_into(experiment, folders, 1, checkpoint_every=1)
    _, checkpoint = resumable(folders, experiment.config)
    train_into(experiment, folders, resume=checkpoint)
    run, images = load_run(tmp_path), digits.test.images[:20]
    [(again, _)] = finish(fit(experiment, [0], start_variables=[run.variables]))
    assert again.epochs[0].loss < run.record.epochs[0].loss
    for form in ("safetensors", "stablehlo"):
        assert export_run(run, form, tmp_path / form, images) < 1e-5


def test_only_parameters_and_their_average_stay_bfloat16(networks):
    """Losses, probabilities and the optimizer's state are float32."""
    model = create_model(config_of(networks, "Half"), MNIST)
    tx, batch = average_params(optax.adam(0.0), 0.9), make_batch(2)
    state = init_state(model, tx, jax.random.key(0), IMAGE_SHAPE)
    step = jax.jit(partial(train_step, model=model, tx=tx))
    check_step(step, state, batch, checks=["types"])
    for _ in range(30):
        state, metrics = step(state, *batch, jax.random.key(0))
    # The mean of equal numbers, which a mean in bfloat16 misses.
    final = final_variables(state)
    assert_trees_close(final, state.variables, 0)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(final)} == {"bfloat16"}
    averages = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert {leaf.dtype.name for leaf in averages} == {"float32"}
    probabilities = predict_images(model, preprocess, final, make_split(2).images)
    assert metrics.loss_sum.dtype == probabilities.dtype == "float32"


def test_float64_parameters_train(networks, digits: Dataset):
    with jax.enable_x64(True):
        [(record, variables)] = finish(
            fit(prepare(config_of(networks, "Precise"), digits), [0])
        )
    assert record.test_loss < np.log(10)
    assert [leaf.dtype for leaf in jax.tree.leaves(variables)].count("float64") == 1


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("Rooted", {"cpu_devices": 2}, "nan at step 2 of 2 of epoch 1; try a --lear"),
        ("Rooted", {"batch_size": 230}, "nan in the evaluation of epoch 1; try"),
        ("NotFinite", {}, "nan at step 1 .*; no step .* not the learning rate"),
        ("Linear", {"learning_rate": 1e38}, ".* at step 2 .*; try a --learning_rate"),
    ],
)
def test_the_step_whose_loss_is_not_finite_is_named(
    networks, digits: Dataset, name, changes, message
):
    changes = {"cpu_devices": 1, "train_size": 256, **changes}  # 2 steps, or 1
    config = config_of(networks, name, **changes)
    message = f"{name}, seed 3: the loss is {message}.*; mnist_jax.check_model tests"
    with pytest.raises(InputError, match=message):
        finish(fit(prepare(config, digits, 2), [3, 1]))
