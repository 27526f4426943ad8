"""Images of other sizes and other numbers of classes than MNIST's."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from flax import linen as nn
from helpers.runs import train_into
from helpers.small_sets import write_idx_set

import mnist_jax
from mnist_jax import InputError, TrainConfig
from mnist_jax.data.augment import Augmentation, all_shifts
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.types import Shapes, class_names
from mnist_jax.models.flops import multiply_adds
from mnist_jax.models.networks import (
    count_params,
    create_model,
    init_model,
    variable_shapes,
)
from mnist_jax.models.rewrite import without_rewriting
from mnist_jax.reporting.pictures import detail_pictures
from mnist_jax.reporting.predictions import run_details
from mnist_jax.reporting.summary import format_totals, layer_frame
from mnist_jax.testing import check_model, make_split
from mnist_jax.training.prepare import prepare
from mnist_jax.training.run_dir import load_variables
from mnist_jax.training.steps import batch_gradients

pytestmark = pytest.mark.slow
SMALL, LARGE = Shapes((12, 20), 3), Shapes((40, 40), 100)
SETTINGS = {
    "mlp": dict(hidden=(16,)),
    "lstm": dict(lstm_units=(8,)),
    "cnn": dict(conv=("4:pool2", "8"), hidden=(8,)),
}


def make_config(model, **changes):
    settings = {"epochs": 2, "batch_size": 64, "cpu_devices": 1, **SETTINGS[model]}
    return TrainConfig(model=model, dataset="idx", **{**settings, **changes})


def load(tmp_path, shapes, train=192, test=100):
    """Returns a set whose labels are marked by bright pixels, written and read."""
    arrays = {}
    for name, size in (("train", train), ("test", test)):
        images, labels = make_split(size, seed=size, shapes=shapes)
        labels[0] = shapes.classes - 1
        arrays[f"x_{name}"] = images
        arrays[f"y_{name}"] = labels.astype(np.uint8)
    write_idx_set(tmp_path / "data", arrays)
    return load_dataset("idx", tmp_path / "data")


@pytest.mark.parametrize("shapes", [SMALL, LARGE], ids=["12x20", "40x40"])
@pytest.mark.parametrize("model", ["lstm", "cnn"])
def test_fast_equals_plain(model, shapes):
    config = make_config(model)
    split = make_split(6, shapes=shapes)
    images, mask = split.images / np.float32(255), np.ones(6, np.float32)
    networks = {
        impl: create_model(dataclasses.replace(config, impl=impl), shapes)
        for impl in ("cpu", "plain")
    }
    variables = init_model(networks["plain"], jax.random.key(0), shapes.image)
    batch = variables, images, split.labels, mask, jax.random.key(0)
    (grads, metrics), (plain_grads, plain_metrics) = (
        jax.jit(partial(batch_gradients, model=network))(*batch)
        for network in networks.values()
    )
    np.testing.assert_allclose(metrics.loss_sum, plain_metrics.loss_sum, rtol=1e-5)
    for leaf, plain in zip(*map(jax.tree.leaves, (grads, plain_grads)), strict=True):
        atol = 1e-4 * float(np.abs(plain).max())
        np.testing.assert_allclose(leaf, plain, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "model, small, large",
    [
        ("mlp", [18 * 10 * 16, 48], [38 * 38 * 16, 1_600]),
        ("lstm", [10 * 18 * 32 + 10 * 8 * 32, 24], [38 * 38 * 32 + 38 * 8 * 32, 800]),
        # 5x9 outputs of 4 filters, 3x7 of 8, halved to 1x3; 19x19, 17x17, 8x8.
        (
            "cnn",
            [45 * 9 * 4, 21 * 36 * 8, 3 * 8 * 8, 24],
            [361 * 9 * 4, 289 * 36 * 8, 64 * 8 * 8, 800],
        ),
    ],
)
def test_layers_are_counted_for_any_shape(model, small, large):
    config = make_config(model, crop=1, conv=("4:same:s2", "8:pool2"))
    for shapes, products in ((SMALL, small), (LARGE, large)):
        layers = layer_frame(config, shapes)
        assert layers["multiply-adds"].tolist() == products
        assert sum(multiply_adds(config, shapes)) == sum(products)
        assert layers["parameters"].sum() == count_params(
            create_model(config, shapes), shapes.image
        )
        assert layers["output shape"].iloc[-1] == (shapes.classes,)
        assert f"{sum(products):,}" in format_totals(config, layers, shapes)


def test_a_run_is_trained_stopped_resumed_and_loaded(tmp_path):
    dataset = load(tmp_path, SMALL)
    config = make_config("mlp", augment=("shift1",), label_smoothing=0.1, tta=1)
    whole, folder = tmp_path / "whole", tmp_path / "run"
    [run] = mnist_jax.train(config, dataset=dataset, run_dir=whole, quiet=True)
    assert (run.record.image_shape, run.record.classes) == ((12, 20), 3)
    experiment = prepare(config, dataset)
    train_into(experiment, {0: folder}, 1, checkpoint_every=1)
    again = dict(run_dir=folder, resume=True, quiet=True)
    mnist_jax.train(config, dataset=dataset, **again)
    resumed = mnist_jax.load_run(folder)
    assert resumed.record.params_sha256 == run.record.params_sha256
    probabilities = resumed.predict(dataset.test.images)
    assert probabilities.shape == (100, 3)
    right = np.mean(probabilities.argmax(axis=1) == dataset.test.labels)
    assert right == pytest.approx(run.record.test_accuracy)
    assert resumed.predict(dataset.test.images[:0]).shape == (0, 3)
    with pytest.raises(InputError, match=r"images \[N,12,20\] uint8"):
        run.predict(np.zeros((1, 28, 28), np.uint8))
    larger = variable_shapes(create_model(config, LARGE), LARGE.image)
    with pytest.raises(InputError, match="does not fit this network: Dense_0"):
        load_variables(whole, larger)


def test_many_classes_are_learned_and_drawn(tmp_path):
    dataset = load(tmp_path, LARGE, train=400)
    config = make_config("mlp", hidden=(64,), epochs=15, learning_rate=0.01)
    folder = tmp_path / "run"
    [run] = mnist_jax.train(config, dataset=dataset, run_dir=folder, quiet=True)
    assert run.record.test_accuracy > 0.1  # 0.01 by chance
    details = run_details(run, dataset.test)
    assert np.shape(details.confusion) == (100, 100)
    pictures = detail_pictures("mlp", 0, [details], "idx", run.shapes)
    assert [picture.name for picture in pictures] == ["confusion", "worst"]
    for picture in pictures:
        picture.draw()
    assert class_names("idx", 100)[99] == "99"


def test_augmentation_keeps_the_shape_and_the_inside():
    images = np.zeros((8, 12, 20), np.uint8)
    images[:, 5:7, 8:12] = 200
    for name in ("flip", "shift2", "rotate5", "zoom0.1", "elastic1", "erase3"):
        augment = Augmentation((name,))
        changed = jax.jit(lambda x, key, augment=augment: augment(x, key))(
            images, jax.random.key(0)
        )
        assert changed.shape == images.shape
        kept = np.sum(np.asarray(changed, np.float64)) / np.sum(images)
        assert (0.3 if name == "erase3" else 0.7) < kept < 1.3, name
    shifts = list(all_shifts(images, 1))
    assert len(shifts) == 9 and {shifted.shape for shifted in shifts} == {(8, 12, 20)}


def test_networks_that_do_not_fit_are_refused(tmp_path):
    dataset = load(tmp_path, SMALL)
    for config, message in (
        (TrainConfig(model="cnn", dataset="idx"), "stage 3 .* of its 1x3 input"),
        (make_config("mlp", crop=6), "--crop=6 leaves no pixel of images of 12x20"),
    ):
        with pytest.raises(InputError, match=message):
            prepare(config, dataset)


class Linear(nn.Module):
    """A custom network with a field for the number of classes."""

    classes: int = 10

    @nn.compact
    def __call__(self, images):
        """Returns the logits `[B,classes]`."""
        return nn.Dense(self.classes)(images.reshape(len(images), -1))


def test_a_custom_network_takes_the_classes_of_the_data():
    spec = f"{__name__}:Linear"
    network = create_model(TrainConfig(model=spec, dataset="idx"), SMALL)
    network = without_rewriting(network)
    assert network.classes == 3
    check_model(network, SMALL.image, SMALL.classes)
