"""Times the start of training, in processes of its own.

As a program it is such a process: it reads a config and the time of its launch as a
line of JSON, trains, and prints its measurements as another.
"""

import dataclasses
import json
import tempfile
import time
from typing import Any

from absl import flags

from mnist_jax.cli.flags import define_machine_flags
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.config import TrainConfig
from mnist_jax.data.datasets import load_dataset
from mnist_jax.profiling.hardware import peak_megabytes
from mnist_jax.records.schema import decode, json_line
from mnist_jax.training.fit import finish, fit
from mnist_jax.training.prepare import prepare

from .processes import Worker

FLAGS = flags.FLAGS


def measure_starts(config: TrainConfig, count: int) -> list[dict[str, Any]]:
    """Trains an epoch `count` times with an empty and then with a full compile cache.

    Returns:
        Of each process: seconds from its launch until the dataset is loaded, compile
        seconds, whether programs came from the cache, and peak memory after the epoch.
    """
    machine = {"data_dir": FLAGS.data_dir, "platform": FLAGS.platform}
    arguments = [f"--{name}={value}" for name, value in machine.items() if value]
    config = dataclasses.replace(config, epochs=1)
    starts = []
    for number in range(1, count + 1):
        print(f"\nstarting {config.name}, {number} of {count} ...", flush=True)
        with tempfile.TemporaryDirectory(prefix="mnist_jax-start-") as folder:
            cache = {"JAX_COMPILATION_CACHE_DIR": folder}
            for _ in ("empty", "full"):
                job = json_line({"config": config, "launch": time.time()})
                with Worker(__name__, *arguments, environment=cache) as worker:
                    starts.append(worker.ask(job))
    return starts


def main() -> None:
    """Starts, compiles and trains, and prints the measurements."""
    job = json.loads(input())
    config = decode(TrainConfig, job["config"])
    start_jax(cpu_devices=config.cpu_devices)
    dataset = load_dataset(config.dataset, FLAGS.data_dir)
    result = {"start s": time.time() - job["launch"]}
    experiment = prepare(config, dataset)
    finish(fit(experiment, [config.seed]))
    result["compile s"] = experiment.compile_seconds
    result["cached"] = experiment.compile_cached
    result["peak MB"] = round(peak_megabytes())
    print(json.dumps(result))


if __name__ == "__main__":
    define_machine_flags()
    run_program(main)
