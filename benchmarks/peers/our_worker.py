"""Times this project's training: a worker of `benchmarks.peers`."""

import dataclasses

from mnist_jax.cli.flags import define_machine_flags
from mnist_jax.cli.main import start_jax
from mnist_jax.data.types import Dataset
from mnist_jax.training.fit import Epoch, Result, fit
from mnist_jax.training.prepare import prepare

from .worker import Job, Measurement, run_worker


def measure(job: Job, dataset: Dataset) -> Measurement:
    """Trains and times a network with `fit`; epoch times include shuffling."""
    start_jax()
    config = dataclasses.replace(job.config, precision=job.variant or "float32")
    for event in fit(prepare(config, dataset), [job.seed]):
        if isinstance(event, Epoch):
            job.end_turn(event.records[0].epoch)
        elif isinstance(event, Result):
            record = event.record
    seconds = [epoch.train_seconds for epoch in record.epochs]
    seconds[0] += record.compile_seconds
    return Measurement(seconds, record.test_accuracy, record.parameters)


if __name__ == "__main__":
    define_machine_flags()
    run_worker(measure)
