"""Real MNIST, if its files are available: its contents, and training a CNN on it."""

import os

from helpers.programs import run

from mnist_jax.data.types import Dataset
from mnist_jax.training.run_dir import load_run


def test_mnist_has_the_expected_shapes_labels_and_counts(mnist: Dataset):
    assert mnist.name == "mnist" and mnist.note == ""
    assert mnist.train.images.shape == (60_000, 28, 28)
    assert mnist.test.images.shape == (10_000, 28, 28)
    # The first labels and the count of each, as on LeCun's page and in any copy.
    assert mnist.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    labels = mnist.train.labels.tolist()
    assert [labels.count(digit) for digit in range(10)] == counts


def test_cnn_learns_mnist_in_one_epoch_of_20000_images(mnist: Dataset, tmp_path):
    run(
        "experiments.train",
        *("--model=cnn", "--epochs=1", "--train_size=20000", "--validation=none"),
        f"--run_dir={tmp_path}",
        MNIST_JAX_DATA_DIR=os.environ["MNIST_JAX_DATA_DIR"],
        XLA_FLAGS="",
    )
    record = load_run(tmp_path).record
    assert record.train_images == 20_000 and record.test_images == 10_000
    # 100 % would mean a wrong count, or training on the test images.
    assert 0.95 < record.test_accuracy < 1.0
    assert record.steady_epoch_seconds is None and record.compile_seconds > 0
