"""Real MNIST, if its files are available: its contents, and training on it."""

import os

import pytest
from helpers.processes import run_python
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


# Of the mean and spread of four seeds on two Zen 5 cores, jax 0.10.2: 0.9603 +- 0.0004,
# 0.9691 +- 0.0011 and 0.9871 +- 0.0002.
ACCURACIES = {"mlp": (0.955, 0.966), "lstm": (0.962, 0.976), "cnn": (0.984, 0.990)}


@pytest.mark.parametrize(
    "model",
    ["mlp", *(pytest.param(m, marks=pytest.mark.programs) for m in ("lstm", "cnn"))],
)
def test_default_networks_learn_mnist_in_one_epoch(model, mnist: Dataset, tmp_path):
    run(
        *("experiments.train", f"--model={model}", "--epochs=1"),
        f"--run_dir={tmp_path}",
        MNIST_JAX_DATA_DIR=os.environ["MNIST_JAX_DATA_DIR"],
        XLA_FLAGS="",
    )
    record = load_run(tmp_path).record
    low, high = ACCURACIES[model]
    assert low < record.test_accuracy < high
    assert record.steady_epoch_seconds is None and record.compile_seconds > 0


# A doubled epoch would be 3.5, 1 and 2 times as fast as the plain one; it is 7, 2, 4.
@pytest.mark.programs
@pytest.mark.parametrize(
    "model, factor", [("cnn", 4.5), ("lstm", 1.5), ("examples/lenet.py:LeNet", 2.5)]
)
def test_an_epoch_is_faster_than_the_plain_one(model, factor, mnist, tmp_path):
    code = (
        "import mnist_jax\n"
        "mnist_jax.setup(cpu_devices=1)\n"
        "for impl in ('plain', 'auto'):\n"
        "    config = mnist_jax.TrainConfig(\n"
        f"        model={model!r}, impl=impl, epochs=4, batch_size=32,\n"
        "        train_size=2560,\n"
        "    )\n"
        "    [run] = mnist_jax.train(config, quiet=True)\n"
        "    print(min(epoch.train_seconds for epoch in run.record.epochs[1:]))\n"
    )
    data = os.environ["MNIST_JAX_DATA_DIR"]
    process = run_python("-c", code, MNIST_JAX_DATA_DIR=data, XLA_FLAGS="")
    plain, fast = map(float, process.stdout.split())
    assert fast < plain / factor, (fast, plain)
