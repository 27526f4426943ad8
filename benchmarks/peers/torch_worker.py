"""Times PyTorch: a worker of `benchmarks.peers`.

python -m benchmarks.peers.torch_worker --model=cnn --arrays=FOLDER

This is the fastest implementation we found. Each choice rests on one or two runs, on a
machine that was not always idle (torch 2.13.0, two cores of an AMD EPYC with AVX-512,
epochs of 12,000 images):

- The data is one tensor, scaled before timing starts and indexed by a permutation,
  without a DataLoader. One gather per epoch, then slices, was slower (MLP: 0.17 s
  instead of 0.12 s).
- Adam is fused: 0.14 s instead of 0.20 s for foreach and for-loop (MLP, batch 32; in an
  earlier run 0.23 s against 0.20 s for foreach).
- Pooling comes before ReLU, which gives the same values for a quarter of the work:
  1.7 s instead of 2.5 s (CNN, channels_last, batch 128).
- The training loop computes no metrics, not even accuracy.
- nn.LSTM runs oneDNN's kernel and has two biases per layer, 1,024 parameters more.
  batch_first and flushing denormals made no visible difference.
- torch.compile compiles the network and the loss as one function with static shapes.
- bfloat16 is autocast, which rounds the operands of products and convolutions; the CNN
  is channels_last.
"""

import numpy as np
import torch
from torch import nn

from mnist_jax.errors import InputError

from .torch_networks import NETWORKS
from .worker import (
    LEARNING_RATE,
    Arrays,
    Job,
    Measurement,
    preprocess,
    run_worker,
    time_epochs,
)

TEST_CHUNK = 1000
VARIANTS = ("eager", "channels_last", "compile", "bfloat16")


class LSTM(nn.Module):
    """Two LSTM layers over the image rows."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(28, 128, num_layers=2, batch_first=True)
        self.dense = nn.Sequential(nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Returns the logits `[B,10]` of images `[B,28,28]`."""
        states, _ = self.lstm(rows)
        logits: torch.Tensor = self.dense(states[:, -1])
        return logits


def create_model(model: str) -> nn.Module:
    """Returns a network with PyTorch's default initialization."""
    if model in NETWORKS:
        return NETWORKS[model]()
    if model == "lstm":
        return LSTM()
    if model == "mlp":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 128),
            nn.ReLU(),
            nn.Linear(128, 128),
            nn.ReLU(),
            nn.Linear(128, 10),
        )
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(576, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def measure(job: Job, arrays: Arrays) -> Measurement:
    """Trains and times a network; epoch times include shuffling."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    layout = torch.contiguous_format
    half = job.variant == "bfloat16"
    if job.variant == "channels_last" or (half and job.model == "cnn"):
        if job.model in ("mlp", "lstm"):
            raise InputError(
                "--variant=channels_last needs a network with convolutions; got "
                f"--model={job.model}"
            )
        layout = torch.channels_last

    def to_tensor(images: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(preprocess(images))
        return tensor[:, None] if job.model == "cnn" else tensor

    images = to_tensor(arrays.train_images)
    labels = torch.from_numpy(arrays.train_labels).long()
    model = create_model(job.model).to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    cross_entropy = nn.CrossEntropyLoss()

    def loss_fn(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss: torch.Tensor = cross_entropy(model(images), labels)
        return loss

    if job.variant == "compile":
        loss_fn = torch.compile(loss_fn, dynamic=False)

    def train_epoch() -> None:
        order = torch.randperm(len(labels))
        for batch in order.split(job.batch_size):
            optimizer.zero_grad(set_to_none=True)
            inputs = images[batch]
            if layout is torch.channels_last and job.model == "cnn":
                inputs = inputs.contiguous(memory_format=layout)
            loss_fn(inputs, labels[batch]).backward()
            optimizer.step()

    seconds = time_epochs(train_epoch, job)
    model.eval()
    test_labels = torch.from_numpy(arrays.test_labels).long()
    with torch.inference_mode():
        chunks = to_tensor(arrays.test_images).split(TEST_CHUNK)
        logits = torch.cat([model(chunk) for chunk in chunks])
    accuracy = (logits.argmax(dim=1) == test_labels).double().mean().item()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    settings = f"{job.variant}, fused Adam, {torch.get_num_threads()} threads"
    return Measurement(seconds, accuracy, parameters, settings)


if __name__ == "__main__":
    run_worker(measure, VARIANTS)
