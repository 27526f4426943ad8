"""Custom networks given as `file.py:Class`."""

import dataclasses
import re
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.custom_networks import NETWORKS
from helpers.runs import resumable, train_into

import mnist_jax
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Dataset
from mnist_jax.errors import InputError
from mnist_jax.models.custom import (
    call_options,
    network_sha256,
    parse_model_args,
)
from mnist_jax.models.flops import count_products, multiply_adds
from mnist_jax.models.networks import (
    apply_model,
    count_params,
    create_model,
    init_model,
    variable_shapes,
)
from mnist_jax.models.rewrite import without_rewriting
from mnist_jax.reporting.summary import layer_frame
from mnist_jax.training.fit import finish, fit
from mnist_jax.training.prepare import prepare
from mnist_jax.training.run_dir import load_run
from mnist_jax.training.steps import batch_gradients, eval_step

RESIDUAL = f"{Path(__file__).parents[2]}/examples/residual_mlp.py:ResidualMLP"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "networks.py"
    path.write_text(NETWORKS)
    return path


def config_of(file: Path, name: str, **changes: object) -> TrainConfig:
    changes = {"dataset": "digits", "epochs": 1, **changes}
    return TrainConfig(model=f"{file}:{name}", **changes)


@pytest.mark.parametrize(
    "name", ["Linear", "Dropped", "Recurrent", "Normalized", "Nnx"]
)
def test_custom_networks_train(file, digits: Dataset, name):
    experiment = prepare(config_of(file, name, cpu_devices=2, epochs=3), digits)
    [(record, _)] = finish(fit(experiment, [0]))
    assert record.config.name == name and record.devices == 2
    assert record.epochs[-1].loss < record.epochs[0].loss
    assert len(record.source_sha256) == 64


def test_a_module_can_be_named_instead_of_a_file(file, monkeypatch):
    monkeypatch.syspath_prepend(file.parent)
    try:
        model = create_model(TrainConfig(model="networks:Linear"), MNIST)
        assert type(without_rewriting(model)).__name__ == "Linear"
    finally:
        sys.modules.pop("networks", None)


@pytest.mark.parametrize(
    "name, message",
    [
        ("Counting", "variables of type int32 in counters; only those of a float"),
        ("Whole", "variables of type int32 in params; only those of a float"),
        ("PerRow", r"logits \[1, 10\] .* images \[1, 28, 28\]; got .*\(1, 28, 10\)"),
        ("Squeezed", r"must return logits \[1, 10\] of .*; got .*shape=\(10,\)"),
        ("Classes", "must return logits .* of a float type .*dtype=int32"),
        ("Empty", "no parameters"),
        *(
            (name, f"{name} is not the class of a Flax module")
            for name in ("flat", "jax", "Missing")
        ),
    ],
)
def test_unusable_networks_are_refused(file, name, message):
    with pytest.raises(InputError, match=message):
        create_model(config_of(file, name), MNIST)


def test_what_a_network_raises_passes_through(file):
    with pytest.raises(TypeError) as raised:
        create_model(config_of(file, "Broken"), MNIST)
    note = r"Broken was called on .*\(1, 28, 28\).* with train=False"
    assert re.search(note, "".join(raised.value.__notes__))
    with pytest.raises(TypeError, match="unexpected keyword argument 'depth'"):
        create_model(config_of(file, "Linear", model_args=("depth=3",)), MNIST)
    for source, error in (("import nothing", ImportError), ("exit(3)", SystemExit)):
        file.write_text(source)
        with pytest.raises(error):
            create_model(config_of(file, "Linear"), MNIST)


@pytest.mark.parametrize("name", ["Deterministic", "Nnx", "NnxTrain"])
def test_a_network_is_told_whether_it_trains(file, name):
    model = create_model(config_of(file, name), MNIST)
    images = np.random.default_rng(0).random((3, 28, 28), np.float32)
    variables = init_model(model, jax.random.key(0), IMAGE_SHAPE)

    def logits(train, key):
        options = dict(train=train, dropout_key=jax.random.key(key))
        return np.asarray(apply_model(model, variables, images, **options)[0])

    assert np.any(logits(True, 1) != logits(True, 2))
    np.testing.assert_array_equal(logits(False, 1), logits(False, 2))


def test_subclasses_of_nnx_param_are_trained_and_counted(file, digits: Dataset):
    experiment = prepare(config_of(file, "NnxLora", epochs=2), digits)
    [(record, variables)] = finish(fit(experiment, [0]))
    params = variables["params"]
    assert record.parameters == 784 * 10 + 10 + (784 + 10) * 2
    assert set(params) == {"layer"}
    assert np.any(params["layer"]["lora"]["lora_b"])  # which starts at 0


@pytest.mark.parametrize("name", ["NnxMixed", "Counted"])
def test_a_network_whose_evaluation_depends_on_the_batch_is_not_trained(
    file, digits: Dataset, name
):
    message = f"{name}: in evaluation the logits of an image depend on the batch"
    with pytest.raises(InputError, match=message):
        prepare(config_of(file, name), digits)


@pytest.mark.parametrize(
    "model, error, message",
    [
        ("/nonexistent/net.py:Net", FileNotFoundError, "/nonexistent/net.py"),
        ("nonexistent.module:Net", ImportError, "No module named 'nonexistent'"),
    ],
)
def test_missing_sources_are_refused(model, error, message):
    with pytest.raises(error, match=message):
        create_model(TrainConfig(model=model), MNIST)


def test_dropout_of_custom_networks_is_off_in_evaluation_and_differs_by_device(file):
    model = create_model(config_of(file, "Dropped"), MNIST)
    assert call_options(model, True, 8) == {"train": True}
    variables = init_model(model, jax.random.key(0), IMAGE_SHAPE)
    images, labels = np.ones((4, 28, 28), np.float32), np.zeros(4, np.int32)
    batch = images, labels, np.ones(4, np.float32)
    losses = eval_step(variables, *batch, model=model).loss_sum
    again = eval_step(variables, *(array[:1] for array in batch), model=model).loss_sum
    np.testing.assert_allclose(losses, 4 * again, rtol=1e-5)
    key = jax.random.key(1)
    one, two, one_again = (
        batch_gradients(variables, *batch, key, model, offset)[1].loss_sum
        for offset in (0, 4, 0)
    )
    assert one == one_again != two


def test_a_changed_source_is_noticed(file, digits: Dataset, tmp_path):
    config, folder = config_of(file, "Linear"), tmp_path / "run"
    train_into(prepare(config, digits), {0: folder})
    assert resumable({0: folder}, config)[0]
    assert load_run(folder).predict(digits.test.images[:3]).shape == (3, 10)
    assert multiply_adds(config_of(file, "Dropped"), MNIST) == [25_088, 320]
    file.write_text(NETWORKS.replace("nn.Dense(10)", "nn.Dense(10, use_bias=False)"))
    with pytest.raises(InputError, match="has changed since"):
        load_run(folder)
    with pytest.raises(InputError, match="source_sha256 was .*, is"):
        resumable({0: folder}, config)
    params = variable_shapes(create_model(config, MNIST), IMAGE_SHAPE)["params"]
    assert params["Dense_0"].keys() == {"kernel"}  # the new source is loaded
    file.write_text(NETWORKS.replace("nn.Dense(32)", "nn.Dense(16)"))
    assert multiply_adds(config_of(file, "Dropped"), MNIST) == [12_544, 160]


def test_the_record_has_the_source_that_was_trained(file, digits: Dataset):
    experiment = prepare(config_of(file, "Linear"), digits)
    trained = network_sha256(experiment.config)
    file.write_text(NETWORKS + "\n")
    [(record, _)] = finish(fit(experiment, [0]))
    assert record.source_sha256 == trained != network_sha256(experiment.config)


def test_a_field_called_impl_is_the_networks_own(file, digits: Dataset):
    source = NETWORKS.replace(
        "rate: float = 0.5", 'rate: float = 0.5\n    impl: str = "cpu"'
    )
    width = 'nn.Dense(32 if self.impl == "cpu" else 16)'
    file.write_text(source.replace("nn.Dense(32)", width))
    [(_, variables)] = finish(fit(prepare(config_of(file, "Dropped"), digits), [0]))
    assert variables["params"]["Dense_0"]["kernel"].shape == (784, 32)


def test_a_run_is_not_resumed_with_a_changed_source(file, digits: Dataset, tmp_path):
    config = config_of(file, "Linear", epochs=2)
    train = partial(mnist_jax.train, dataset=digits, run_dir=tmp_path / "run")
    train(config, quiet=True, checkpoint_every=1)
    longer = dataclasses.replace(config, epochs=3)
    file.write_text(NETWORKS + "\n")
    (tmp_path / "run" / "record.json").unlink()  # as if it had been stopped
    with pytest.raises(InputError, match="no checkpoint .* is valid"):
        train(longer, quiet=True, resume=True)
    file.write_text(NETWORKS)
    [run] = train(longer, quiet=True, resume=True)
    assert len(run.record.epochs) == 3


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
    file, digits: Dataset, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    config = config_of(Path(file.name), "Linear")
    train_into(prepare(config, digits), {0: tmp_path / "runs" / "linear"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    run = load_run("../runs/linear")
    assert run.record.config == config and run.config.model == f"{file}:Linear"
    assert run.predict(digits.test.images[:3]).shape == (3, 10)
    monkeypatch.setenv("HOME", str(tmp_path))
    home = dataclasses.replace(config, model="~/networks.py:Linear")
    assert network_sha256(home) == run.record.source_sha256
    file.unlink()
    with pytest.raises(FileNotFoundError, match="networks.py"):
        load_run("../runs/linear")


def test_summary_of_a_custom_network(file):
    layers = layer_frame(config_of(file, "Dropped"), MNIST)
    assert layers["layer"].tolist() == ["Dense_0", "Dense_1"]
    assert layers["parameters"].tolist() == [25_120, 330]
    assert layers["multiply-adds"].tolist() == [25_088, 320]
    assert multiply_adds(config_of(file, "Dropped"), MNIST) == [25_088, 320]
    [layer] = layer_frame(config_of(file, "Half"), MNIST).to_dict("records")
    assert (layer["layer"], layer["kind"]) == ("out", "Dense")


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


@pytest.mark.slow
def test_a_run_with_fields_trains_and_loads(digits: Dataset, tmp_path):
    args = ("width=8", "depth=1")
    config = TrainConfig(model=RESIDUAL, model_args=args, dataset="digits", epochs=1)
    assert count_params(create_model(config, MNIST), IMAGE_SHAPE) < count_params(
        create_model(dataclasses.replace(config, model_args=()), MNIST), IMAGE_SHAPE
    )
    train_into(prepare(config, digits), {0: tmp_path})
    run = load_run(tmp_path)
    assert run.model.width == 8 and run.model.depth == 1
    assert run.config.model_args == args
