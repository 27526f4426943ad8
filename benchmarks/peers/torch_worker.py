"""Times PyTorch: a worker of `benchmarks.peers`.

The variants are eager, channels_last, compile and bfloat16, which is autocast with
channels_last. This is the fastest implementation we found with torch 2.13.0 on two
cores of an AMD EPYC with AVX-512: the data is one tensor, indexed by a permutation
(slower: a DataLoader, or one gather per epoch), Adam is fused (0.14 s an epoch instead
of 0.20 s for the MLP), and the loop computes no metrics. nn.LSTM runs oneDNN's kernel
and has two biases per layer.
"""

import torch
from torch import nn

from mnist_jax.data.types import Dataset

from .torch_networks import create_model
from .worker import LEARNING_RATE, Job, Measurement, preprocess, run_worker, time_epochs

TEST_CHUNK = 1000


def measure(job: Job, dataset: Dataset) -> Measurement:
    """Trains and times a network; epoch times include shuffling."""
    torch.manual_seed(job.seed)
    images = torch.from_numpy(preprocess(dataset.train.images))
    labels = torch.from_numpy(dataset.train.labels).long()
    model, half = create_model(job.model), job.variant == "bfloat16"
    if half or job.variant == "channels_last":  # of the convolutions' weights
        model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    cross_entropy = nn.CrossEntropyLoss()

    def loss_fn(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss: torch.Tensor = cross_entropy(model(images), labels)
        return loss

    if job.variant == "compile":  # network and loss as one function, of static shapes
        loss_fn = torch.compile(loss_fn, dynamic=False)

    def train_epoch() -> None:
        for batch in torch.randperm(len(labels)).split(job.batch_size):
            optimizer.zero_grad(set_to_none=True)
            loss_fn(images[batch], labels[batch]).backward()
            optimizer.step()

    seconds = time_epochs(train_epoch, job)
    model.eval()
    with torch.inference_mode():
        chunks = torch.from_numpy(preprocess(dataset.test.images)).split(TEST_CHUNK)
        predicted = torch.cat([model(chunk).argmax(dim=1) for chunk in chunks])
    accuracy = float((predicted.numpy() == dataset.test.labels).mean())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Measurement(seconds, accuracy, parameters)


if __name__ == "__main__":
    run_worker(measure)
