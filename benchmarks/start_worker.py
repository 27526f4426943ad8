"""Measures the start-up of a training program: a worker of `benchmarks.throughput`.

python -m benchmarks.start_worker --model=cnn --began=$(date +%s.%N)

It prints one line of JSON: seconds from --began until the dataset is loaded, compile
seconds, whether the programs came from the cache, and peak memory after an epoch.
"""

import json
import time

from absl import flags

from mnist_jax.cli.config_flags import config_from_flags, define_config_flags
from mnist_jax.cli.flags import define_machine_flags
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.data.datasets import load_dataset
from mnist_jax.profiling.memory import peak_megabytes
from mnist_jax.training.fit import finish, fit
from mnist_jax.training.prepare import prepare

FLAGS = flags.FLAGS


def main() -> None:
    """Starts, compiles and trains, and prints the measurements."""
    config = config_from_flags(FLAGS)
    start_jax()
    dataset = load_dataset(config.dataset, FLAGS.data_dir)
    result = {"start s": time.time() - FLAGS.began}
    experiment = prepare(config, dataset)
    finish(fit(experiment, [config.seed]))
    result["compile s"] = experiment.compile_seconds
    result["cached"] = experiment.compile_cached
    result["peak MB"] = round(peak_megabytes())
    print(json.dumps(result))


def run() -> None:
    """Entry point."""
    define_config_flags()
    define_machine_flags()
    flags.DEFINE_float("began", None, "time.time() at launch", required=True)
    run_program(main)


if __name__ == "__main__":
    run()
