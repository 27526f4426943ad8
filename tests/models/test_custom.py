"""Custom networks given as `file.py:Class`."""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.custom_networks import NETWORKS, config_of
from helpers.runs import resumable, train_into

from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.custom import call_options, network_sha256, parse_model_args
from mnist_jax.models.flops import count_products, multiply_adds
from mnist_jax.models.networks import (
    apply_model,
    count_params,
    create_model,
    init_model,
    variable_shapes,
)
from mnist_jax.testing import make_batch
from mnist_jax.training.fit import finish, fit
from mnist_jax.training.prepare import prepare
from mnist_jax.training.run_dir import load_run
from mnist_jax.training.steps import batch_gradients


class Called(nn.Module):
    def __call__(self, training, is_training, deterministic, use_running_average):
        pass


@pytest.mark.parametrize("train", [True, False])
def test_training_has_the_names_of_other_libraries_too(train):
    same = dict.fromkeys(("training", "is_training"), train)
    opposite = dict.fromkeys(("deterministic", "use_running_average"), not train)
    assert call_options(Called(), train, batch_offset=0) == same | opposite


@pytest.mark.parametrize(
    "name, message",
    [
        ("Counting", "variables of type int32 in counters; only those of a float"),
        ("AlwaysAverages", "no step updates its statistics; give batch normalization"),
        ("Squeezed", r"must return logits \[1, 10\] of .*; got .*shape=\(10,\)"),
        ("Classes", "must return logits .* of a float type .*dtype=int32"),
        ("Empty", "no parameters"),
        ("flat", "flat is not the class of a Flax module"),
    ],
)
def test_unusable_networks_are_refused(networks, name, message):
    with pytest.raises(InputError, match=message):
        create_model(config_of(networks, name), MNIST)


def test_what_a_network_raises_passes_through(networks):
    with pytest.raises(TypeError) as raised:
        create_model(config_of(networks, "Broken"), MNIST)
    note = r"Broken was called on .*\(1, 28, 28\).* with train=False"
    assert re.search(note, "".join(raised.value.__notes__))
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        create_model(config_of(networks, "Linear", model_args=("depth=3",)), MNIST)


@pytest.mark.parametrize("name", ["Dropped", "Nnx", "NnxTrain"])
def test_a_network_is_told_whether_it_trains(networks, name):
    model = create_model(config_of(networks, name), MNIST)
    images = np.random.default_rng(0).random((3, 28, 28), np.float32)
    variables = init_model(model, jax.random.key(0), IMAGE_SHAPE)

    def logits(train, key):
        options = dict(train=train, dropout_key=jax.random.key(key))
        return np.asarray(apply_model(model, variables, images, **options)[0])

    assert np.any(logits(True, 1) != logits(True, 2))
    np.testing.assert_array_equal(logits(False, 1), logits(False, 2))


def test_subclasses_of_nnx_param_are_parameters(networks):
    model = create_model(config_of(networks, "NnxLora"), MNIST)
    assert count_params(model, IMAGE_SHAPE) == 784 * 10 + 10 + (784 + 10) * 2


def test_dropout_of_custom_networks_differs_by_device(networks):
    model, key = create_model(config_of(networks, "Dropped"), MNIST), jax.random.key(1)
    variables, batch = init_model(model, key, IMAGE_SHAPE), make_batch(4)
    one, two, one_again = (
        batch_gradients(variables, *batch, key, model, offset)[1].loss_sum
        for offset in (0, 4, 0)
    )
    assert one == one_again != two


def test_a_network_whose_evaluation_depends_on_the_batch_is_not_trained(
    networks, digits: Dataset
):
    message = "NnxMixed: in evaluation the logits of an image depend on the batch"
    with pytest.raises(InputError, match=message):
        prepare(config_of(networks, "NnxMixed"), digits)


def test_a_changed_source_is_noticed(networks, digits: Dataset, tmp_path):
    config, folder = config_of(networks, "Linear"), tmp_path / "run"
    train_into(prepare(config, digits), {0: folder})
    assert resumable({0: folder}, config)[0]
    assert load_run(folder).predict(digits.test.images[:3]).shape == (3, 10)
    assert multiply_adds(config_of(networks, "Dropped"), MNIST) == [25_088, 320]
    networks.write_text(
        NETWORKS.replace("nn.Dense(10)", "nn.Dense(10, use_bias=False)")
    )
    with pytest.raises(InputError, match="has changed since"):
        load_run(folder)
    with pytest.raises(InputError, match="source_sha256 was .*, is"):
        resumable({0: folder}, config)
    params = variable_shapes(create_model(config, MNIST), IMAGE_SHAPE)["params"]
    assert params["Dense_0"].keys() == {"kernel"}  # the new source is loaded
    networks.write_text(NETWORKS.replace("nn.Dense(32)", "nn.Dense(16)"))
    assert multiply_adds(config_of(networks, "Dropped"), MNIST) == [12_544, 160]


def test_the_record_has_the_source_that_was_trained(networks, digits: Dataset):
    experiment = prepare(config_of(networks, "Linear"), digits)
    trained = network_sha256(experiment.config)
    networks.write_text(NETWORKS + "\n")
    [(record, _)] = finish(fit(experiment, [0]))
    assert record.config.name == "Linear"
    assert record.source_sha256 == trained != network_sha256(experiment.config)


def test_loops_and_branches_are_counted_as_documented():
    x = np.ones((3, 3), np.float32)
    loops = {
        "scan": (lambda x: jax.lax.fori_loop(0, 5, lambda _, y: y @ y, x), 5),
        "while_loop": (lambda x: jax.lax.while_loop(jnp.any, lambda y: y @ y, x), 1),
        "cond": (lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x @ x), 2),
    }
    for name, (function, products) in loops.items():
        counts = count_products(jax.make_jaxpr(function)(x).jaxpr)
        assert sum(n for _, n in counts) == 27 * products, name


def test_files_import_the_modules_beside_them(tmp_path):
    for width in (10, 20):
        folder = tmp_path / str(width)
        folder.mkdir()
        (folder / "beside.py").write_text(f"WIDTH = {width}\n")
        source = NETWORKS.replace("nn.Dense(32)", "nn.Dense(WIDTH)")
        (folder / "net.py").write_text(f"from beside import WIDTH\n{source}")
        model = create_model(config_of(folder / "net.py", "Dropped"), MNIST)
        params = variable_shapes(model, IMAGE_SHAPE)["params"]
        assert params["Dense_0"]["bias"].shape == (width,)
    assert "beside" not in sys.modules and str(folder) not in sys.path


def test_a_run_is_loaded_from_another_working_directory(
    networks, digits: Dataset, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = config_of(Path(networks.name), "Linear")
    train_into(prepare(config, digits), {0: tmp_path / "runs" / "linear"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    run = load_run("../runs/linear")
    assert run.record.config == config and run.config.model == f"{networks}:Linear"
    assert run.predict(digits.test.images[:3]).shape == (3, 10)


@pytest.mark.parametrize(
    "args, value",
    [
        (["width=64"], 64),
        (["width=-1e-3"], -0.001),
        (["width=false"], False),
        (["width=None"], None),
        (["width=gelu"], "gelu"),
        (["width='3'"], "3"),
        (["width=(8", "16)"], (8, 16)),  # a flag is split at commas
        (["width=((1", "2)", "(3", "same))"], ((1, 2), (3, "same"))),
        (["width=[4", "8]"], (4, 8)),  # a list cannot be hashed
    ],
)
def test_values_are_literals_or_words(args, value):
    fields = parse_model_args([*args, "kind=tanh"])
    assert fields == {"width": value, "kind": "tanh"}
    assert type(fields["width"]) is type(value)
