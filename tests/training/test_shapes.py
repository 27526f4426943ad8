"""Images of other sizes and other numbers of classes than MNIST's."""

import numpy as np
import pytest

import mnist_jax
from mnist_jax import InputError, TrainConfig
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.types import Shapes
from mnist_jax.models.flops import multiply_adds
from mnist_jax.models.networks import count_params, create_model
from mnist_jax.reporting.summary import layer_frame
from mnist_jax.testing.steps import make_split

SMALL = Shapes((12, 20), 3)


def test_layers_are_counted_by_hand():
    """5x9 outputs of 4 filters, 3x7 of 8, halved to 1x3."""
    stages = "4:same:s2:bn", "8:pool2"
    config = TrainConfig(model="cnn", crop=1, conv=stages, hidden=(8,), dataset="idx")
    layers = layer_frame(config, SMALL).set_index("layer")
    products = layers["multiply-adds"].drop("BatchNorm_0").tolist()
    assert products == [45 * 9 * 4, 21 * 36 * 8, 3 * 8 * 8, 24]
    network = create_model(config, SMALL)
    assert layers["parameters"].sum() == count_params(network, SMALL.image)
    assert layers["multiply-adds"].sum() == sum(multiply_adds(config, SMALL))


def test_a_run_is_trained_and_loaded(tmp_path):
    arrays, folder = {}, tmp_path / "run"
    for name, size in (("train", 192), ("test", 100)):
        arrays[f"x_{name}"], labels = make_split(size, seed=size, shapes=SMALL)
        arrays[f"y_{name}"] = labels.astype(np.uint8)
    np.savez(tmp_path / "set.npz", **arrays)
    dataset = load_dataset("idx", tmp_path)
    recipe = dict(augment=("shift1",), label_smoothing=0.1, tta=1, batch_size=64)
    config = TrainConfig(dataset="idx", hidden=(16,), epochs=2, cpu_devices=1, **recipe)
    mnist_jax.train(config, dataset=dataset, run_dir=folder, quiet=True)
    run = mnist_jax.load_run(folder)
    assert (run.record.image_shape, run.record.classes) == ((12, 20), 3)
    probabilities = run.predict(dataset.test.images)
    assert probabilities.shape == (100, 3)
    right = np.mean(probabilities.argmax(axis=1) == dataset.test.labels)
    assert right == pytest.approx(run.record.test_accuracy)
    assert run.predict(dataset.test.images[:0]).shape == (0, 3)
    with pytest.raises(InputError, match=r"images \[N,12,20\] uint8"):
        run.predict(np.zeros((1, 28, 28), np.uint8))
