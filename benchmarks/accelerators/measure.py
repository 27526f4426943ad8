"""Measures training on a GPU or TPU, in under ten minutes.

python -m benchmarks.accelerators --dataset=mnist --out=results

Each part is appended to accelerators.jsonl as soon as it is measured: training of the
three networks, images per second by batch size and precision, several seeds together
and, on an NVIDIA GPU, cuDNN's LSTM and whether training twice gives the same bits.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags

from mnist_jax.cli.flags import (
    chosen_models,
    chosen_numbers,
    define_machine_flags,
    define_models_flag,
    load_data,
)
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.records.environment import current_environment
from mnist_jax.records.schema import append_jsonl
from mnist_jax.training.experiment import prepare
from mnist_jax.training.fit import fit

from ..throughput import measure, synthetic_dataset
from .tables import TABLES, AcceleratorRecord, format_accelerators

FLAGS = flags.FLAGS
PRECISIONS = ("float32", "bfloat16")
DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
CUDNN_LSTM = f"{Path(__file__).parent / 'cudnn_lstm.py'}:CudnnLSTM"
CUDA_PARTS = "lstm", "determinism"
Rows = Iterator[dict[str, Any]]


def measure_training(dataset: Dataset, epochs: int, seeds: int) -> Rows:
    """Trains each network with its default settings, one seed after the other."""
    for model in chosen_models():
        config = TrainConfig(model=model, epochs=epochs, validation="none")
        experiment = prepare(config, dataset)
        runs = [fit(experiment, [seed])[0][0] for seed in range(seeds)]
        yield {
            "model": model,
            "compile_seconds": experiment.compile_seconds,
            "test_accuracy": [run.test_accuracy for run in runs],
            "epoch_seconds": [[e.train_seconds for e in run.epochs] for run in runs],
        }


def measure_speed(dataset: Dataset, batch_sizes: Sequence[int], repeats: int) -> Rows:
    """Times each network by batch size and precision, in images per second."""
    for model in chosen_models():
        for batch_size in batch_sizes:
            row: dict[str, Any] = {"model": model, "batch_size": batch_size}
            for precision in PRECISIONS:
                config = TrainConfig(
                    model=model,
                    batch_size=batch_size,
                    precision=precision,
                    validation="none",
                )
                row[precision] = measure(config, dataset, repeats, seeds=1)
            yield row


def measure_together(dataset: Dataset, counts: Sequence[int], repeats: int) -> Rows:
    """Times each network with several seeds in one program, in images per second."""
    for model in chosen_models():
        config = TrainConfig(model=model, validation="none")
        for count in counts:
            speeds = measure(config, dataset, repeats, seeds=count)
            together = speeds["together"] or speeds["epoch"]
            yield {
                "model": model,
                "seeds": count,
                "alone": speeds["epoch"],
                "together": together,
            }


def measure_lstm(dataset: Dataset, batch_sizes: Sequence[int], repeats: int) -> Rows:
    """Times one LSTM layer of 128 units, this project's and cuDNN's."""
    for batch_size in batch_sizes:
        row: dict[str, Any] = {"batch_size": batch_size}
        for name, model in (("ours", "lstm"), ("cudnn", CUDNN_LSTM)):
            config = TrainConfig(model=model, batch_size=batch_size, validation="none")
            row[name] = measure(config, dataset, repeats, seeds=1)["epoch"]
        yield row


def _train_in_a_process(arguments: Sequence[str], xla_flag: str) -> dict[str, Any]:
    xla_flags = f"{os.environ.get('XLA_FLAGS', '')} {xla_flag}".strip()
    process = subprocess.run(
        [sys.executable, "-m", f"{__package__}.determinism_worker", *arguments],
        env={**os.environ, "XLA_FLAGS": xla_flags},
        stdout=subprocess.PIPE,
        text=True,
    )
    if process.returncode:
        raise InputError(f"training with XLA_FLAGS='{xla_flags}' failed (see above)")
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def measure_determinism() -> Rows:
    """Trains in two processes each with and without XLA's flag."""
    # Recompiled, as on another machine: XLA's choice of algorithms may differ.
    arguments = [f"--dataset={FLAGS.dataset}", "--compile_cache=off"]
    arguments += [f"--models={','.join(chosen_models())}"]
    arguments += [f"--data_dir={FLAGS.data_dir}"] if FLAGS.data_dir else []
    for flag in ("", DETERMINISTIC):
        first, second = (_train_in_a_process(arguments, flag) for _ in range(2))
        for model in chosen_models():
            yield {
                "model": model,
                "flag": flag,
                "equal": first[model]["sha256"] == second[model]["sha256"],
                "seconds": [first[model]["seconds"], second[model]["seconds"]],
            }


def main() -> None:
    """Measures the parts of the flags and prints their tables."""
    if not FLAGS.parts or not set(FLAGS.parts) <= set(TABLES):
        raise InputError(
            f"--parts must be one or more of {', '.join(TABLES)}; got "
            f"{','.join(FLAGS.parts) or 'none'}"
        )
    chosen_models()  # before anything is loaded
    dataset = load_data(FLAGS.dataset, any_shape=False)
    images = len(dataset.train.labels)
    batch_sizes = chosen_numbers("batch_sizes", "integers from 1 to 1000000", 1_000_000)
    counts = chosen_numbers("together", "integers from 1 to 1024", 1024)
    results = Path(FLAGS.out) / "accelerators.jsonl"
    results.parent.mkdir(parents=True, exist_ok=True)
    start_jax()
    if jax.default_backend() == "cpu" and FLAGS.platform != "cpu":
        raise InputError(
            "JAX finds no GPU or TPU here; install JAX for one, as in "
            "docs/command_line.md, or give --platform=cpu to measure the CPU"
        )
    synthetic, repeats = synthetic_dataset(max(images, *batch_sizes)), FLAGS.repeats
    parts: dict[str, Callable[[], Rows]] = {
        "training": lambda: measure_training(dataset, FLAGS.epochs, FLAGS.seeds),
        "speed": lambda: measure_speed(synthetic, batch_sizes, repeats),
        "together": lambda: measure_together(synthetic, counts, repeats),
        "lstm": lambda: measure_lstm(synthetic, batch_sizes, repeats),
        "determinism": measure_determinism,
    }
    chosen = [part for part in parts if part in FLAGS.parts]
    if "cuda" not in jax.devices()[0].client.platform_version.lower():
        chosen = [part for part in chosen if part not in CUDA_PARTS]
        if not chosen:
            raise InputError(
                f"--parts={','.join(FLAGS.parts)} needs an NVIDIA GPU; give one of "
                f"{', '.join(part for part in TABLES if part not in CUDA_PARTS)}"
            )
    records = []
    for part in chosen:
        print(f"measuring {part} ...", flush=True)
        rows = []
        for row in parts[part]():
            rows.append(row)
            print(f"  {row}", flush=True)
        environment = current_environment()
        record = AcceleratorRecord(part, environment, dataset.name, images, rows)
        append_jsonl(results, record)
        records.append(record)
    print(f"\n{format_accelerators(records)}\n\nwritten: {results}")


def run() -> None:
    """Entry point."""
    define_machine_flags()
    define_models_flag("measure")
    flags.DEFINE_list("parts", list(TABLES), "what to measure, comma-separated")
    flags.DEFINE_list("batch_sizes", ["128", "1024", "8192"], "images per step")
    flags.DEFINE_list("together", ["1", "8", "64"], "numbers of seeds together")
    flags.DEFINE_integer("epochs", 5, "epochs of training", lower_bound=1)
    flags.DEFINE_integer("seeds", 3, "seeds of training", lower_bound=1)
    flags.DEFINE_integer("repeats", 2, "timed rounds of each speed", lower_bound=1)
    flags.DEFINE_string("dataset", "mnist", "name of the dataset")
    flags.DEFINE_string("out", "results", "directory of accelerators.jsonl")
    run_program(main)
