"""Trains a published PyTorch recipe for 99 % of MNIST: a worker of `speedrun --peers`.

For each line of its input, a seed, it trains once and prints a line of JSON with the
test accuracy and the training seconds. The network and its settings are those of
"Training a NN to 99% accuracy on MNIST in 0.76 seconds" (github.com/tuomaso/
train_mnist_fast, notebook 8): one epoch of 256 images a step, Adam with betas 0.7 and
0.9, one cycle with a peak of 0.01. The images come in the order of the files; the
notebook has shuffled them once.
"""

import json
import sys
import time

import numpy as np
import torch
from absl import flags
from torch import nn
from torch.nn import functional as F

from mnist_jax.cli.flags import define_data_dir_flag
from mnist_jax.cli.main import run_program
from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.types import Split
from mnist_jax.records.environment import available_cores

FLAGS = flags.FLAGS
BATCH, PEAK = 256, 1e-2


def to_tensors(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns standardized images `[N,1,28,28]` and labels."""
    images = (split.images.astype(np.float32) / 255 - 0.1307) / 0.3081
    return torch.from_numpy(images[:, None]), torch.from_numpy(split.labels).long()


def train(
    images: torch.Tensor, labels: torch.Tensor, seed: int
) -> tuple[nn.Module, float]:
    """Trains one epoch; returns the network and the seconds."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        *(nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(24, 32, 3), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 10)),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=PEAK, betas=(0.7, 0.9))
    batches = list(zip(images.split(BATCH), labels.split(BATCH), strict=True))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK, total_steps=len(batches), cycle_momentum=False
    )
    start = time.perf_counter()
    for inputs, targets in batches:
        optimizer.zero_grad()
        F.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
        schedule.step()
    return network, time.perf_counter() - start


def main() -> None:
    """Trains each seed that it reads."""
    torch.set_num_threads(available_cores())
    data = load_dataset("mnist", FLAGS.data_dir)
    (images, labels), (test_images, truth) = map(to_tensors, (data.train, data.test))
    few = slice(20 * BATCH)
    train(images[few], labels[few], 0)  # warm-up, as ours compiles before
    for line in sys.stdin:
        network, seconds = train(images, labels, int(line))
        with torch.no_grad():
            classes = [
                network(chunk).argmax(dim=1) for chunk in test_images.split(1000)
            ]
        accuracy = float((torch.cat(classes) == truth).double().mean())
        print(json.dumps({"accuracy": accuracy, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    define_data_dir_flag()
    run_program(main)
