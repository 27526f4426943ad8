"""Images of other sizes and other numbers of classes than MNIST's."""

import numpy as np
import pytest
from flax import linen as nn
from helpers.networks import network_gradients
from helpers.runs import train_into
from helpers.small_sets import write_idx_set

import mnist_jax
from mnist_jax import InputError, TrainConfig
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.types import Shapes
from mnist_jax.models.flops import multiply_adds
from mnist_jax.models.networks import (
    count_params,
    create_model,
)
from mnist_jax.models.rewrite import without_rewriting
from mnist_jax.reporting.summary import layer_frame
from mnist_jax.testing import assert_trees_close, check_model
from mnist_jax.testing.steps import make_split
from mnist_jax.training.prepare import prepare

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


@pytest.mark.parametrize("model, shapes", [("lstm", SMALL), ("cnn", LARGE)])
def test_fast_equals_plain(model, shapes):
    got, want = (
        network_gradients(
            make_config(model, impl=impl), make_split(6, shapes=shapes), shapes
        )
        for impl in ("cpu", "plain")
    )
    assert_trees_close(got, want, 1e-4)


def test_layers_are_counted_by_hand():
    """5x9 outputs of 4 filters, 3x7 of 8, halved to 1x3."""
    config = make_config("cnn", crop=1, conv=("4:same:s2:bn", "8:pool2"))
    layers = layer_frame(config, SMALL).set_index("layer")
    products = layers["multiply-adds"].drop("BatchNorm_0").tolist()
    assert products == [45 * 9 * 4, 21 * 36 * 8, 3 * 8 * 8, 24]
    network = create_model(config, SMALL)
    assert layers["parameters"].sum() == count_params(network, SMALL.image)
    assert layers["multiply-adds"].sum() == sum(multiply_adds(config, SMALL))


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
