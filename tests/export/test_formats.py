"""Exported networks classify as the trained ones do."""

import importlib.util
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import ROOT
from helpers.trained import NETWORKS, make_run
from jax import export
from safetensors import safe_open

from mnist_jax.data.types import Dataset, Shapes
from mnist_jax.errors import InputError
from mnist_jax.export.formats import FORMATS, check_export, export_run
from mnist_jax.export.onnx_file import predict_onnx
from mnist_jax.export.stablehlo_file import PLATFORMS, predict_stablehlo
from mnist_jax.records.schema import RunRecord, decode
from mnist_jax.testing import assert_trees_close
from mnist_jax.training.checkpoints import named_leaves

EXAMPLES = ROOT / "examples"
CUSTOM = {
    name: dict(model=f"{EXAMPLES}/{file}", model_args=arguments)
    for name, file, arguments in (
        ("nnx", "nnx_cnn.py:CNN", ("width=4",)),
        ("residual", "residual_mlp.py:ResidualMLP", ("width=8", "depth=1")),
        ("resnet", "resnet.py:ResNet", ("width=4",)),
    )
}


@pytest.fixture(scope="module")
def images(digits: Dataset) -> np.ndarray:
    """A few digits, and images without any and with only bright pixels."""
    extremes = np.stack([np.full((28, 28), pixel, np.uint8) for pixel in (0, 255)])
    return np.concatenate([digits.test.images[:30], extremes])


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_gives_the_probabilities_for_any_number_of_images(name, images, tmp_path):
    run, path = make_run(**NETWORKS[name]), tmp_path / "network.onnx"
    assert export_run(run, "onnx", path, images) < 1e-5
    found = predict_onnx(path, images, run)
    assert found.dtype == np.float32 and found.shape == (len(images), 10)
    assert np.ptp(found, axis=0).max() > 0.1  # they depend on the image
    np.testing.assert_allclose(
        predict_onnx(path, images[:1], run), found[:1], atol=1e-6
    )
    assert [path.name for path in tmp_path.iterdir()] == ["network.onnx"]


def test_onnx_names_its_input_output_and_classes(images, tmp_path):
    import onnx

    run = make_run(**NETWORKS["linear"])
    export_run(run, "onnx", tmp_path / "network.onnx", images)
    model = onnx.load(tmp_path / "network.onnx")
    [given], [result] = model.graph.input, model.graph.output
    for value, name, dtype, shape in (
        (given, "images", onnx.TensorProto.UINT8, ["batch", 28, 28]),
        (result, "probabilities", onnx.TensorProto.FLOAT, ["batch", 10]),
    ):
        tensor = value.type.tensor_type
        sizes = [axis.dim_param or axis.dim_value for axis in tensor.shape.dim]
        assert (value.name, tensor.elem_type, sizes) == (name, dtype, shape)
    properties = {item.key: item.value for item in model.metadata_props}
    assert properties["classes"] == "0,1,2,3,4,5,6,7,8,9"


def test_onnx_refuses_custom_networks_and_names_other_formats(images, tmp_path):
    run = make_run(**CUSTOM["residual"])
    message = "ResidualMLP is a custom network; give --format=stablehlo or"
    with pytest.raises(InputError, match=message):
        export_run(run, "onnx", tmp_path / "network.onnx", images)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        *("stacked", "cnn", "nnx"),
        pytest.param("residual", marks=pytest.mark.faults),
        pytest.param("resnet", marks=pytest.mark.faults),  # compiles for 4 s
    ],
)
def test_stablehlo_is_one_file_for_all_platforms(name, images, tmp_path):
    run, path = make_run(**(NETWORKS | CUSTOM)[name]), tmp_path / "network"
    assert export_run(run, "stablehlo", path, images) < 1e-5
    exported = export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == PLATFORMS == ("cpu", "cuda", "tpu")
    [given], [result] = exported.in_avals, exported.out_avals
    assert given.str_short() == "uint8[batch,28,28]"
    assert result.str_short() == "float32[batch,10]"
    expected = predict_stablehlo(path, images, run)[:3]
    np.testing.assert_allclose(exported.call(images[:3]), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["cnn", *CUSTOM])
def test_a_safetensors_file_has_the_arrays_and_the_record(name, images, tmp_path):
    run, path = make_run(**(NETWORKS | CUSTOM)[name]), tmp_path / "network"
    assert export_run(run, "safetensors", path, images) == 0
    with safe_open(path, framework="numpy") as file:
        record = decode(RunRecord, json.loads(file.metadata()["record"]))
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    assert record == run.record
    assert_trees_close(arrays, named_leaves(run.variables), rtol=0)


@pytest.mark.parametrize(
    "fields",
    [
        dict(model="mlp", precision="bfloat16"),
        dict(model="lstm"),
        dict(model="cnn", conv=("4:same:s2", "3:pool2")),
    ],
)
def test_networks_for_other_images_are_exported_in_float32(fields, tmp_path):
    options = dict(hidden=(5,), crop=1, pixels="l2", dataset="idx")
    run = make_run(Shapes((12, 20), 3), **options, **fields)
    images = np.random.default_rng(0).integers(0, 256, (7, 12, 20), np.uint8)
    for name in ("onnx", "safetensors", "stablehlo"):
        assert export_run(run, name, tmp_path / name, images) < 1e-5


@pytest.mark.parametrize("model", ["mlp", "lstm", "cnn"])
def test_networks_are_saved_for_tensorflow(model, tmp_path):
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    conv = {"conv": ("4:same:s2", "3:bn")} if model == "cnn" else {}
    run = make_run(Shapes((12, 20), 3), model=model, dataset="idx", **conv)
    images = np.random.default_rng(0).integers(0, 256, (7, 12, 20), np.uint8)
    assert export_run(run, "saved", tmp_path / "saved", images) < 1e-5


@pytest.mark.parametrize("wrong", [0.2, np.nan])
def test_nothing_is_written_if_the_probabilities_differ(
    wrong, images, tmp_path, monkeypatch
):
    run, path = make_run(model="mlp", hidden=()), tmp_path / "network.onnx"
    path.write_bytes(b"before")
    form = FORMATS["onnx"]._replace(predict=lambda *_: np.full((32, 10), wrong))
    monkeypatch.setitem(FORMATS, "onnx", form)
    with pytest.raises(InputError, match="on 32 test images a probability differs"):
        export_run(run, "onnx", path, images)
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


def test_outputs_that_cannot_be_written_are_refused(images, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("onnx", "safetensors"):
        with pytest.raises(OSError, match="folder"):
            export_run(make_run(hidden=()), name, folder, images)
    assert [*tmp_path.rglob("*")] == [folder]
    with pytest.raises(FileExistsError):
        check_export("onnx", Path(__file__) / "network.onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = r"--format=onnx needs onnx and onnxruntime, .* `pip install '\.\[onnx\]'`"
    with pytest.raises(InputError, match=message):
        check_export("onnx", tmp_path / "network.onnx")


def test_every_format_has_its_extra():
    text = (ROOT / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    for name, form in FORMATS.items():
        found = [requirement.partition(">=")[0] for requirement in extras[name]]
        assert found == list(form.packages)
