"""Trains each network and prints digests of its parameters and the times as JSON.

A worker of `benchmarks.accelerators`:

python -m benchmarks.accelerators.determinism_worker --dataset=mnist
"""

import json

from absl import flags

from mnist_jax.cli.flags import (
    chosen_models,
    define_machine_flags,
    define_models_flag,
    load_data,
)
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.config import TrainConfig
from mnist_jax.training.checkpoints import params_sha256
from mnist_jax.training.experiment import prepare
from mnist_jax.training.fit import fit

FLAGS = flags.FLAGS


def main() -> None:
    """Trains two epochs of each network."""
    start_jax()
    dataset, results = load_data(FLAGS.dataset, any_shape=False), {}
    for model in chosen_models():
        config = TrainConfig(model=model, epochs=2, validation="none")
        [(record, params)] = fit(prepare(config, dataset), [0])
        results[model] = {
            "sha256": params_sha256(params),
            "seconds": record.epochs[-1].train_seconds,
        }
    print(json.dumps(results))


def run() -> None:
    """Entry point."""
    define_machine_flags()
    define_models_flag("train")
    flags.DEFINE_string("dataset", "mnist", "name of the dataset")
    run_program(main)


if __name__ == "__main__":
    run()
