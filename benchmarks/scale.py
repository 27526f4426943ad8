"""Times jobs of one process per core against one process with a device per core.

python -m benchmarks.scale --models=cnn,lstm --batch_sizes=128,512

Both train on the same cores, in turns, with the same batch on each device. A job of
several processes exchanges its gradients over gloo, as it would between hosts. Run it
on an otherwise idle machine.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from absl import flags

from mnist_jax.cli.flags import (
    chosen_models,
    chosen_numbers,
    define_models_flag,
    define_path_flag,
)
from mnist_jax.cli.main import run_program
from mnist_jax.errors import InputError
from mnist_jax.records.environment import available_cores, current_environment
from mnist_jax.records.files import check_append
from mnist_jax.records.schema import append_jsonl, plain
from mnist_jax.reporting.tables import markdown_table

from .statistics import ratio_interval

FLAGS = flags.FLAGS
Rounds = list[tuple[list[float], list[float]]]  # images/s: of the job, and alone


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


def _start(out: Path, cores: list[int], words: list[str]) -> subprocess.Popen[bytes]:
    """Starts `benchmarks.throughput` on some cores, with a device on each."""
    command = [
        *(sys.executable, "-m", f"{__package__}.throughput", f"--out={out}"),
        *("--starts=0", f"--cpu_devices={len(cores)}", *words),
    ]
    previous = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # the new process inherits it
    try:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)
    finally:
        os.sched_setaffinity(0, previous)


def measure(cores: list[int], words: list[str], processes: int) -> list[float]:
    """Returns the images per second of each timed epoch.

    Args:
        cores: cores to use, one for each device.
        words: flags of `benchmarks.throughput` for one network and batch size.
        processes: 1, or as many as there are cores.

    Raises:
        InputError: a process failed.
    """
    with tempfile.TemporaryDirectory(prefix="mnist_jax-scale-") as folder:
        out, running = Path(folder), []
        if processes == 1:
            running.append(_start(out, cores, words))
        else:
            port = _free_port()
            for process, core in enumerate(cores):
                job = [f"--coordinator=localhost:{port}", f"--process_id={process}"]
                job.append(f"--num_processes={processes}")
                running.append(_start(out, [core], words + job))
        if any([process.wait() for process in running]):
            raise InputError("a process of the measurement failed (see above)")
        [line] = (out / "throughput.jsonl").read_text().splitlines()
        return json.loads(line)["epoch"]


def main() -> None:
    """Measures each network and batch size, and prints the table."""
    models = chosen_models()
    allowed = f"integers from 1 to --images={FLAGS.images}"
    sizes = chosen_numbers("batch_sizes", allowed, FLAGS.images)
    cores = sorted(os.sched_getaffinity(0))[: available_cores()]
    if len(cores) < 2:
        raise InputError(
            "this program needs at least two cores, and this process may use "
            f"{len(cores)}; run it on another machine"
        )
    out = Path(FLAGS.out) / "scale.jsonl"
    check_append(out)
    rows = []
    for model in models:
        for size in sizes:
            print(f"measuring {model}, batch {size} a device ...", flush=True)
            words = [f"--models={model}", f"--batch_sizes={size * len(cores)}"]
            words += [f"--images={FLAGS.images}", f"--repeats={FLAGS.repeats}"]
            rounds = [
                (measure(cores, words, len(cores)), measure(cores, words, 1))
                for _ in range(FLAGS.rounds)
            ]
            rows.append(_row(model, size, rounds))
            figures = {
                "model": model,
                "batch_per_device": size,
                "processes": len(cores),
            }
            environment = plain(current_environment())
            append_jsonl(
                out, {**figures, "job_and_alone": rounds, "environment": environment}
            )
    print(
        f"\nimages/s of whole epochs, medians of n; {len(cores)} cores; efficiency: "
        "the job over one process, with a 95 % bootstrap interval\n"
    )
    print(markdown_table(pd.DataFrame(rows)))


def _row(model: str, size: int, rounds: Rounds) -> dict[str, Any]:
    ratio = ratio_interval(rounds, 50)
    job, alone = ([speed for pair in rounds for speed in pair[i]] for i in (0, 1))
    return {
        "model": model,
        "batch a device": size,
        "one process": f"{statistics.median(alone):,.0f}",
        "one process per core": f"{statistics.median(job):,.0f}",
        "efficiency": f"{ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
        "n": len(job),
    }


def run() -> None:
    """Entry point."""
    define_models_flag("time")
    flags.DEFINE_list(
        "batch_sizes",
        ["128", "512"],
        "images of a batch on each device, comma-separated",
    )
    flags.DEFINE_integer(
        "images", 60_000, "images per epoch", lower_bound=1, upper_bound=1_000_000
    )
    flags.DEFINE_integer("repeats", 3, "timed epochs in each round", lower_bound=1)
    flags.DEFINE_integer("rounds", 4, "rounds, in turns", lower_bound=1)
    define_path_flag("out", "results", "folder of the scale.jsonl to append to")
    run_program(main)


if __name__ == "__main__":
    run()
