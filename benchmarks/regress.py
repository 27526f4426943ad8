"""Measures whether this checkout trains faster or slower than another commit.

python -m benchmarks.regress --against=HEAD~1 --rounds=8

Each round trains every network once with the code of each commit, in separate processes
and alternating order. The ratio of the two times is tested by its 95 % confidence
interval over the rounds (Student's t on paired logarithms). All trains on the CPU. Each
comparison is appended to benchmarks/history.jsonl.
"""

import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from mnist_jax.cli.flags import (
    define_data_dir_flag,
    define_models_flag,
    define_path_flag,
)
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.config import NAMED_DATASETS
from mnist_jax.data.datasets import load_dataset
from mnist_jax.records.environment import current_environment, git
from mnist_jax.records.files import check_append
from mnist_jax.records.schema import append_jsonl
from mnist_jax.reporting.statistics import Interval, mean_interval, verdict

from .peers.worker import save_arrays
from .processes import Worker

FLAGS = flags.FLAGS
ROOT = Path(__file__).parent.parent
HISTORY = ROOT / "benchmarks" / "history.jsonl"
STEADY_EPOCHS = {"mlp": 5}  # of the other networks 1


def judge(here: Sequence[float], there: Sequence[float]) -> tuple[Interval, str]:
    """Returns the ratio of the seconds per round, here over there, and the verdict.

    >>> [judge(here, [1.0, 1.1, 1.2])[1] for here in ([1.5, 1.6, 1.7], [0.8, 0.9, 0.9])]
    ['slower', 'faster']
    >>> judge([1.0, 2.0, 1.0], [1.0, 1.0, 2.0])[1]
    'undecided'
    """
    logs = mean_interval(np.log(here) - np.log(there))  # paired by round
    ratio = Interval(*np.exp(logs).tolist())
    return ratio, verdict(ratio, 1, "slower", "faster")


def time_rounds(
    model: str, checkouts: Mapping[str, Path], arrays: Path
) -> dict[str, list[float]]:
    """Trains a network with the code of each checkout, in alternating order.

    Returns:
        By checkout, the median seconds of the steady epochs of each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in checkouts}
    for number in range(FLAGS.rounds):
        for name in list(checkouts)[:: -1 if number % 2 else 1]:
            with Worker(
                "benchmarks.peers.our_worker",
                *(f"--model={model}", f"--batch_size={FLAGS.batch_size}"),
                *(f"--seed={number}", f"--steady_epochs={STEADY_EPOCHS.get(model, 1)}"),
                *(f"--arrays={arrays}", "--compile_cache=off"),
                environment={"JAX_PLATFORMS": "cpu"},
                folder=checkouts[name],  # whose packages `python -m` imports
            ) as worker:
                epochs = worker.read()["epoch_seconds"]
            seconds[name].append(statistics.median(epochs[1:]))
        latest = ", ".join(f"{name} {each[-1]:.3f} s" for name, each in seconds.items())
        print(f"{model} round {number + 1}/{FLAGS.rounds}: {latest}", flush=True)
    return seconds


def main() -> None:
    """Compares this checkout with --against."""
    against = git("rev-parse", "--verify", f"{FLAGS.against}^{{commit}}")
    out = Path(FLAGS.out)
    check_append(out)
    start_jax(platform="cpu")  # as in the workers
    dataset, verdicts = load_dataset(FLAGS.dataset, FLAGS.data_dir), []
    with tempfile.TemporaryDirectory(prefix="mnist_jax-regress-") as name:
        arrays, there = Path(name), Path(name) / "there"
        save_arrays(dataset, arrays)
        git("worktree", "add", "--detach", str(there), against)
        try:
            for model in FLAGS.models:
                seconds = time_rounds(model, {"here": ROOT, "there": there}, arrays)
                ratio, judgement = judge(**seconds)
                record = {
                    "against": against,
                    "dataset": dataset.name,
                    "model": model,
                    "batch_size": FLAGS.batch_size,
                    "seconds": seconds,
                    "ratio": ratio._asdict(),
                    "verdict": judgement,
                    "environment": current_environment(),
                }
                append_jsonl(out, record)
                verdicts.append(judgement)
                print(
                    f"{model}: {statistics.median(seconds['here']):.3f} s/epoch here, "
                    f"{statistics.median(seconds['there']):.3f} there; here/there "
                    f"{ratio:.3f} (n={FLAGS.rounds}): {judgement}\n",
                    flush=True,
                )
        finally:
            git("worktree", "remove", "--force", str(there))
    if "slower" in verdicts:
        sys.exit(3)


def run() -> None:
    """Entry point."""
    define_data_dir_flag()
    define_models_flag("time")
    flags.DEFINE_string("against", "HEAD", "commit to compare this checkout with")
    flags.DEFINE_integer("rounds", 8, "repetitions of all measurements", lower_bound=2)
    flags.DEFINE_integer("batch_size", 128, "images per step", lower_bound=1)
    flags.DEFINE_enum("dataset", "mnist", NAMED_DATASETS, "dataset")
    define_path_flag("out", str(HISTORY), "file to append the comparison to")
    run_program(main)


if __name__ == "__main__":
    run()
