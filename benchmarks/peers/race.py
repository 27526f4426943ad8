"""Times this project against PyTorch, Keras and plain Flax on the CPU, side by side.

python -m benchmarks.peers --rounds=5 --out=results/peers

It needs PyTorch, Keras and TensorFlow beside the project: `make peers` sets them up.
Each measurement is a process of its own, one at a time; a round takes every framework,
network and batch size once in turn. What is measured already is not measured again, so
that an interrupted run goes on where it was.
"""

import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pandas as pd
from absl import flags

from mnist_jax.cli.main import load_data, run_program
from mnist_jax.config import MODELS
from mnist_jax.data.datasets import Dataset, Split
from mnist_jax.errors import InputError
from mnist_jax.models.flops import training_flops
from mnist_jax.records.files import code_digest, make_folder, write_file
from mnist_jax.records.schema import (
    append_jsonl,
    available_cores,
    environment,
    read_jsonl,
)
from mnist_jax.reporting.tables import markdown_table, mean_and_spread, median_and_range

from .worker import Arrays, Job, peer_config, save_arrays

FLAGS = flags.FLAGS
Record = Mapping[str, Any]
ByFramework = dict[str, list[Record]]

# glibc hands big blocks back to the system when they are freed and takes page faults
# for them anew in each step; PyTorch's tuning guide proposes another allocator against
# that. Keeping the blocks serves the same end with nothing to install (LSTM, batch 128:
# 0.8-1.0 s against 1.4-1.9 s for 6,000 images; CNN, batch 32: no gain). Keras's LSTMs
# gained too (2.1-2.8 s to 1.5-1.8 s) but stayed slower, so they have no such row.
_KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
}


class Framework(NamedTuple):
    """A row of the table: who trains, in which form."""

    label: str
    module: str
    variants: Mapping[str, str]  # by model; a model that is not in it has no such row
    packages: tuple[str, ...] = ()  # beyond the project's own
    peer: bool = True  # counts for the ratio
    environment: Mapping[str, str] = {}


def _all(variant: str) -> dict[str, str]:
    return dict.fromkeys(MODELS, variant)


OURS = "ours"
FRAMEWORKS = {
    OURS: Framework("ours", "our_worker", _all(""), peer=False),
    "torch": Framework("PyTorch eager", "torch_worker", _all("eager"), ("torch",)),
    "torch_channels_last": Framework(
        "PyTorch eager, channels_last",
        "torch_worker",
        {"cnn": "channels_last"},
        ("torch",),
    ),
    # Channels first: channels_last was slower when compiled (1.4 s against 0.95 s).
    "torch_compile": Framework(
        "PyTorch torch.compile", "torch_worker", _all("compile"), ("torch",)
    ),
    "torch_malloc": Framework(
        "PyTorch eager (CNN channels_last), malloc tuned",
        "torch_worker",
        {**_all("eager"), "cnn": "channels_last"},
        ("torch",),
        environment=_KEEP_MEMORY,
    ),
    "keras_tf": Framework(
        "Keras on TensorFlow",
        "keras_worker",
        _all("tensorflow"),
        ("keras", "tensorflow"),
    ),
    "keras_jax": Framework("Keras on JAX", "keras_worker", _all("jax"), ("keras",)),
    "flax": Framework("plain Flax (baseline)", "flax_worker", _all(""), peer=False),
}
# How many times faster than the fastest peer we mean to be, by model and batch size.
TARGETS = {
    ("mlp", 128): 2.5,
    ("mlp", 32): 4.0,
    ("cnn", 128): 1.8,
    ("cnn", 32): 1.8,
    ("lstm", 128): 1.2,
    ("lstm", 32): 1.2,
}
STEADY_EPOCHS = {"mlp": 3, "lstm": 1, "cnn": 1}
PEAK = "matmul"  # the name under which the machine's peak is recorded
TRIES = 3  # of a measurement that other programs disturb
WORKER_SECONDS = 3600  # after which a worker counts as hung


class Cell(NamedTuple):
    """One measurement of a round."""

    framework: str
    model: str
    batch_size: int


def cell_of(record: Record) -> Cell:
    """Returns which measurement a record is of."""
    return Cell(record["framework"], record["model"], record["batch_size"])


# What records say: pure functions over the records of one run.


def epoch_seconds(record: Record) -> float:
    """Returns the median of a process's steady epochs."""
    return statistics.median(record["result"]["epoch_seconds"][1:])


def is_valid(record: Record) -> bool:
    """Tells whether a measurement ended and had the cores to itself."""
    return "result" in record and not record["disturbed"]


def seconds_by_round(records: Iterable[Record]) -> dict[int, float]:
    """Returns the seconds of an epoch by round."""
    return {record["round"]: epoch_seconds(record) for record in records}


def group(records: Iterable[Record]) -> dict[tuple[str, int], ByFramework]:
    """Returns the valid measurements by (model, batch size), then by framework."""
    groups: dict[tuple[str, int], ByFramework] = {}
    for record in records:
        if record["framework"] in FRAMEWORKS and is_valid(record):
            cell = cell_of(record)
            place = groups.setdefault((cell.model, cell.batch_size), {})
            place.setdefault(cell.framework, []).append(record)
    return groups


def best_peer(by_framework: ByFramework, as_installed: bool = False) -> str | None:
    """Returns the PyTorch or Keras row with the lowest median; None if there is none.

    Args:
        by_framework: finished measurements of one model and batch size.
        as_installed: leave out rows that set something in the environment.
    """
    medians = {
        name: statistics.median(map(epoch_seconds, records))
        for name, records in by_framework.items()
        if FRAMEWORKS[name].peer and not (as_installed and FRAMEWORKS[name].environment)
    }
    return min(medians, key=lambda name: medians[name], default=None)


def is_slow(
    framework: str, by_framework: ByFramework, rounds: int, slow_ratio: float
) -> bool:
    """Tells whether a row is known to be far from the fastest peer, to save its time.

    That is so once it has been measured in so many rounds and was slower in each of
    them than `slow_ratio` times the fastest peer's median. Our own row never is.
    """
    best = best_peer(by_framework)
    mine = by_framework.get(framework, [])
    if framework == OURS or best is None or len(mine) < rounds:
        return False
    limit = slow_ratio * statistics.median(map(epoch_seconds, by_framework[best]))
    return min(map(epoch_seconds, mine)) > limit


def ratios(by_framework: ByFramework, peer: str) -> list[float]:
    """Returns the peer's seconds over ours for each round that has both."""
    ours = seconds_by_round(by_framework.get(OURS, []))
    theirs = seconds_by_round(by_framework[peer])
    return [theirs[number] / ours[number] for number in sorted(ours.keys() & theirs)]


def spread(values: Sequence[float]) -> str:
    """Writes median, range and n, with three decimals below 1 and two above.

    >>> spread([1.0, 3.0, 2.0])
    '2.00 [1.00, 3.00] (n=3)'
    """
    digits = 3 if statistics.median(values) < 1 else 2
    return f"{median_and_range(values, digits)} (n={len(values)})"


def verdict(model: str, batch_size: int, values: Sequence[float]) -> str:
    """Says whether the median of the ratios reaches its target.

    >>> verdict("mlp", 128, [2.4, 2.5, 2.6])
    'met'
    """
    target = TARGETS.get((model, batch_size))
    if target is None:
        return "no target"
    return "met" if statistics.median(values) >= target else "not met"


def ratio_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Returns one row per model and batch size with our ratio to the fastest peer."""
    rows = []
    for (model, batch_size), by_framework in group(records).items():
        peer = best_peer(by_framework)
        values = ratios(by_framework, peer) if peer else []
        if peer is None or not values:
            continue
        installed = best_peer(by_framework, as_installed=True)
        others = ratios(by_framework, installed) if installed else []
        target = TARGETS.get((model, batch_size))
        rows.append(
            {
                "model": model,
                "batch": batch_size,
                "fastest peer": FRAMEWORKS[peer].label,
                "times faster": spread(values),
                "target": "-" if target is None else f"{target:g}",
                "verdict": verdict(model, batch_size, values),
                "fastest as installed": FRAMEWORKS[installed].label
                if installed
                else "-",
                "times faster than that": spread(others) if others else "-",
            }
        )
    return pd.DataFrame(rows)


def peak_gflops(records: Iterable[Record]) -> float | None:
    """Returns the matmul peak: of the better library in the best round."""
    peaks = [
        max(record["result"].values())
        for record in records
        if record["framework"] == PEAK and is_valid(record)
    ]
    return max(peaks, default=None)


def time_frame(records: Sequence[Record]) -> pd.DataFrame:
    """Returns one row per model, batch size and framework, fastest first."""
    peak = peak_gflops(records)
    rows = []
    for (model, batch_size), by_framework in group(records).items():
        flops = training_flops(peer_config(Job(model, batch_size, 1)))
        for name, runs in by_framework.items():
            seconds = list(map(epoch_seconds, runs))
            median = statistics.median(seconds)
            results = [run["result"] for run in runs]
            images = runs[0]["run"]["train_images"]
            share = flops * images / median / (peak * 1e9) if peak else None
            rows.append(
                {
                    "order": (MODELS.index(model), -batch_size, median),
                    "model": model,
                    "batch": batch_size,
                    "framework": FRAMEWORKS[name].label,
                    "s/epoch": spread(seconds),
                    "images/s": f"{images / median:,.0f}",
                    "% of peak": f"{100 * share:.1f}" if share else "-",
                    "first epoch s": spread(
                        [result["epoch_seconds"][0] for result in results]
                    ),
                    "test accuracy": mean_and_spread(
                        [result["test_accuracy"] for result in results]
                    ),
                    "peak MB": f"{max(r['peak_rss_mb'] for r in results):,}",
                    "parameters": f"{results[0]['parameters']:,}",
                    "form": results[0]["form"],
                }
            )
    frame = pd.DataFrame(sorted(rows, key=lambda row: row["order"]))
    return frame.drop(columns="order") if rows else frame


def format_ratios(records: Sequence[Record]) -> str:
    """Writes the table of ratios and what it rests on as Markdown."""
    return format_tables(records, times=False)


def format_tables(records: Sequence[Record], times: bool = True) -> str:
    """Writes the ratios, if wanted the times, and what they rest on as Markdown."""
    measured = list(filter(is_valid, records))
    disturbed = sum(record["disturbed"] for record in records)
    if not group(measured):
        return f"nothing was measured ({disturbed} measurements were disturbed)"
    # A row that failed once and was then measured did not fail.
    done = {(record["round"], cell_of(record)) for record in measured}
    failures = {
        f"{cell_of(r).framework} {cell_of(r).model} {cell_of(r).batch_size}": r["error"]
        for r in records
        if "error" in r and (r["round"], cell_of(r)) not in done
    }
    first = next(record for record in measured if record["framework"] in FRAMEWORKS)
    run, machine = first["run"], first["environment"]
    dates = sorted(record["date"] for record in measured)
    loads = [record["load"] for record in measured]
    others = [record["others_cores"] for record in measured]
    commits = dict.fromkeys(
        f"{str(e['commit'])[:12]}{' (with uncommitted changes)' if e['dirty'] else ''}"
        for e in (record["environment"] for record in measured)
    )
    epochs = {record["model"]: record["run"]["steady_epochs"] for record in measured}
    epochs.pop("", None)
    peak = peak_gflops(records)
    ratio_rows = ratio_frame(measured)
    faster = markdown_table(ratio_rows) if len(ratio_rows) else "no pair to compare"
    lines = [
        f"**{run['dataset'].upper()} on {run['device']} ({run['cores']} cores)**",
        faster,
        *([markdown_table(time_frame(measured).drop(columns="form"))] if times else []),
        f"- data: {run['dataset']}, {run['train_images']:,} training images, sha256 "
        f"{run['checksum']}\n"
        f"- {run['cores']} threads for each program, float32, Adam with learning rate "
        "1e-3, all images shuffled anew each epoch, the last smaller batch trained on\n"
        "- each measurement is a process of its own, one at a time; rounds are "
        "interleaved; s/epoch is the median over rounds [lowest, highest] of each "
        "process's steady epochs ("
        + ", ".join(f"{model} {count}" for model, count in epochs.items())
        + "); the first epoch, with all compiling, is apart\n"
        "- n: rows clearly slower than the fastest peer leave the later rounds out\n"
        "- times faster: peer's seconds over ours in the same round, median [lowest, "
        "highest]; plain Flax is a baseline and no peer; 'as installed' leaves out "
        "the row with a tuned malloc, which is PyTorch's only\n"
        "- test accuracy: mean ± standard deviation over rounds, whose number is the "
        "seed, after the first and the steady epochs\n"
        f"- matmul peak, measured in the same run: {peak or 0:,.0f} GFLOP/s; % of peak "
        "counts the operations of the network's products by formula "
        "(mnist_jax/flops.py), which Winograd's convolutions undercut\n"
        f"- versions: {', '.join(f'{k} {v}' for k, v in run['versions'].items())}\n"
        f"- commit: {', '.join(commits)}; code {run['code']}; CPU "
        f"{machine['device']}\n"
        f"- date: {dates[0]} to {dates[-1]}; load average before a measurement "
        f"{min(loads)} to {max(loads)}; other programs used {min(others):.2f} to "
        f"{max(others):.2f} cores during a measurement, in the median "
        f"{statistics.median(others):.2f}; {disturbed} measurements that others "
        "disturbed are left out",
    ]
    if failures:
        lines.append(
            "\n".join(f"- **failed**: {row}: {why}" for row, why in failures.items())
        )
    return "\n\n".join(lines)


# Measuring.


def busy_seconds() -> float:
    """Returns the seconds that all cores have worked since the start, 0 if unknown."""
    try:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        # user, nice, system, then idle and waiting, then interrupts.
        ticks = sum(map(int, words[1:4])) + sum(map(int, words[6:8]))
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return 0.0


def own_seconds() -> float:
    """Returns the seconds that this process and its ended workers have worked."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _versions(machine: Mapping[str, Any]) -> dict[str, str]:
    """Returns the versions of all that computes."""
    names = ("python", "jax", "jaxlib", "flax", "optax", "numpy")
    versions = {name: str(machine[name]) for name in names}
    for name in ("torch", "keras", "tensorflow", "tensorflow-cpu"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return versions


def run_worker_process(command: Sequence[str], extra: Mapping[str, str]) -> Any:
    """Runs a worker and returns its answer, or the last line of its errors as text."""
    threads = str(available_cores())
    settings = {
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    try:
        process = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=Path(__file__).parents[2],
            env={**os.environ, **settings, **extra},
            capture_output=True,
            text=True,
            timeout=WORKER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no answer after {WORKER_SECONDS} s"
    if process.returncode == 0:
        return json.loads(process.stdout.splitlines()[-1])
    lines = process.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit status {process.returncode}"


def _worker_command(
    cell: Cell, steady_epochs: int, seed: int, arrays: Path
) -> list[str]:
    """Returns the command line of a measurement."""
    framework = FRAMEWORKS[cell.framework]
    variant = framework.variants[cell.model]
    return [
        f"{__package__}.{framework.module}",
        f"--model={cell.model}",
        f"--batch_size={cell.batch_size}",
        f"--steady_epochs={steady_epochs}",
        f"--seed={seed}",
        f"--threads={available_cores()}",
        f"--arrays={arrays}",
        *([f"--variant={variant}"] if variant else []),
    ]


def time_left(cells: Iterable[Cell], seconds: Mapping[Cell, float]) -> str:
    """Estimates how long measurements will take from those that were made.

    >>> times = {Cell("ours", "mlp", 32): 60.0}
    >>> time_left([Cell("ours", "mlp", 32), Cell("torch", "mlp", 32)], times)
    'about 2 min left'
    """
    if not seconds:
        return "time left unknown"
    total = 0.0
    for cell in cells:
        alike = [time for key, time in seconds.items() if key.model == cell.model]
        guess = statistics.mean(alike or seconds.values())
        total += seconds.get(cell, guess)
    return f"about {total / 60:.0f} min left"


def _words(flag: str, words: Sequence[str], allowed: Iterable[str]) -> list[str]:
    """Checks the words of a list flag."""
    allowed = list(allowed)
    for word in words:
        if word not in allowed:
            raise InputError(
                f"--{flag} must be some of {', '.join(allowed)}; got {word}"
            )
    if not words:
        raise InputError(f"--{flag} is empty; give some of {', '.join(allowed)}")
    return list(dict.fromkeys(words))


def choose_frameworks(names: Sequence[str]) -> list[str]:
    """Returns the frameworks that can be measured here.

    Raises:
        InputError: a package that one of them needs is not installed.
    """
    names = _words("frameworks", names, FRAMEWORKS)
    missing = {
        package
        for name in names
        for package in FRAMEWORKS[name].packages
        if importlib.util.find_spec(package) is None
    }
    if missing:
        here = [name for name in names if not missing & {*FRAMEWORKS[name].packages}]
        raise InputError(
            f"{' and '.join(sorted(missing))} not found beside this Python: run `make "
            "peers`, which sets up an environment of its own, or measure only what is "
            f"here with --frameworks={','.join(here)}"
        )
    if "torch_compile" in names and not (
        shutil.which("g++") or shutil.which("clang++")
    ):
        print("torch.compile is left out: it needs a C++ compiler, and there is none")
        names.remove("torch_compile")
    return names


def make_plan(
    frameworks: Sequence[str], models: Sequence[str], batches: Sequence[int]
) -> list[Cell]:
    """Returns the measurements of one round, in order."""
    return [
        Cell(framework, model, batch_size)
        for model in models
        for batch_size in batches
        for framework in frameworks
        if model in FRAMEWORKS[framework].variants
    ]


def write_tables(out: Path, records: Sequence[Record]) -> str:
    """Writes the tables as Markdown and CSV; returns the Markdown."""
    markdown = format_tables(records)
    write_file(out / "peers.md", markdown + "\n")
    write_file(out / "peers.csv", time_frame(records).to_csv(index=False))
    write_file(out / "peers_ratios.csv", ratio_frame(records).to_csv(index=False))
    return markdown


class Session(NamedTuple):
    """What a run has measured so far and what it measures with."""

    results: Path  # the file that records are appended to
    runs: dict[str, dict[str, Any]]  # what must be equal to be one run, by model
    machine: dict[str, Any]
    records: list[Record]
    seconds: dict[Cell, float]  # how long a measurement took the last time
    failed: set[Cell]


def start_session(results: Path, models: Sequence[str], dataset: Dataset) -> Session:
    """Finds out what is to be measured and what of it the results hold already."""
    needed = (
        *(*Cell._fields, "round", "run", "environment", "date"),
        *("load", "wall_seconds", "others_cores", "disturbed"),
    )
    earlier = read_jsonl(results, needed)
    machine = environment()
    common: dict[str, Any] = {
        # Of all that is timed: the package and the workers.
        "code": code_digest(sorted(Path(__file__).parent.glob("*_worker.py"))),
        "device": machine["device"],
        "cores": machine["cores"],
        "versions": _versions(machine),
        "dataset": dataset.name,
        "checksum": dataset.checksum,
        "train_images": len(dataset.train.labels),
    }
    runs = {
        model: {**common, "steady_epochs": FLAGS.steady_epochs or STEADY_EPOCHS[model]}
        for model in models
    }
    runs[""] = {**common, "steady_epochs": 0}  # of the machine's peak
    records: list[Record] = [r for r in earlier if r["run"] == runs.get(r["model"])]
    seconds = {cell_of(record): record["wall_seconds"] for record in records}
    return Session(results, runs, machine, records, seconds, set())


def measure(
    session: Session, number: int, cell: Cell, command: Sequence[str]
) -> Record:
    """Runs one measurement and records it, be it that it failed or was disturbed."""
    load, start = round(os.getloadavg()[0], 2), time.perf_counter()
    extra = {} if cell.framework == PEAK else FRAMEWORKS[cell.framework].environment
    busy, own = busy_seconds(), own_seconds()
    answer = run_worker_process(command, extra)
    elapsed = time.perf_counter() - start
    others = (busy_seconds() - busy) - (own_seconds() - own)
    others_cores = round(max(others, 0.0) / elapsed, 2)
    record: Record = {
        "round": number,
        **cell._asdict(),
        "run": session.runs[cell.model],
        "environment": session.machine,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "load": load,
        "wall_seconds": round(elapsed, 2),
        # Threads that wait for each other suffer most: next to programs that kept one
        # of two cores busy, PyTorch's LSTM took 34 s for 6,000 images, else 1.4-1.9 s.
        "others_cores": others_cores,
        "disturbed": others_cores > FLAGS.others_limit,
        ("error" if isinstance(answer, str) else "result"): answer,
    }
    append_jsonl(session.results, record)
    session.records.append(record)
    session.seconds[cell] = record["wall_seconds"]
    if "error" in record:
        session.failed.add(cell)
    return record


def is_needed(session: Session, number: int, cell: Cell) -> bool:
    """Tells whether a measurement is still to be made, as far as is known now."""
    done = {(r["round"], cell_of(r)) for r in session.records if is_valid(r)}
    if (number, cell) in done or cell in session.failed:
        return False
    by_framework = group(session.records).get((cell.model, cell.batch_size), {})
    return cell.framework == PEAK or not is_slow(
        cell.framework, by_framework, FLAGS.slow_rounds, FLAGS.slow_ratio
    )


def describe(record: Record) -> str:
    """Writes a measurement as a line of progress."""
    cell = cell_of(record)
    name = f"{cell.model:4} {cell.batch_size:4} {cell.framework:19}"
    if "error" in record:
        return f"{name} FAILED: {record['error']}"
    result = record["result"]
    return (
        f"{name} {epoch_seconds(record):8.3f} s/epoch  accuracy "
        f"{result['test_accuracy']:.4f}  {result['peak_rss_mb']:5,} MB  others "
        f"{record['others_cores']:.2f} cores"
        + (" DISTURBED, does not count" if record["disturbed"] else "")
    )


def measure_all(session: Session, plan: Sequence[Cell], arrays: Path) -> None:
    """Measures round by round what is needed, with a line for each measurement."""
    rounds = range(1, FLAGS.rounds + 1)
    cells = [(number, cell) for number in rounds for cell in plan]
    for place, (number, cell) in enumerate(cells):
        peak_cell = Cell(PEAK, "", 0)
        if is_needed(session, number, peak_cell):
            measure(session, number, peak_cell, [f"{__package__}.matmul_worker"])
        steady = session.runs[cell.model]["steady_epochs"]
        command = _worker_command(cell, steady, number, arrays)
        for _ in range(TRIES):
            if is_needed(session, number, cell):
                record = measure(session, number, cell, command)
                left = [c for n, c in cells[place + 1 :] if is_needed(session, n, c)]
                print(
                    f"round {number}/{FLAGS.rounds}  {describe(record)}  "
                    f"({time_left(left, session.seconds)})",
                    flush=True,
                )


def main() -> None:
    """Measures as the flags say."""
    models = _words("models", FLAGS.models, MODELS)
    batches = []
    for word in dict.fromkeys(FLAGS.batches or ["none"]):
        if not (word.isascii() and word.isdigit() and int(word) >= 1):
            raise InputError(f"--batches must be whole numbers from 1; got {word}")
        batches.append(int(word))
    for name in ("slow_ratio", "others_limit"):
        if math.isnan(getattr(FLAGS, name)):  # which the flags' lower bounds let pass
            raise InputError(f"--{name} must be a number; got nan")
    plan = make_plan(choose_frameworks(FLAGS.frameworks), models, batches)
    if not plan:
        raise InputError(
            "--frameworks and --models leave nothing to measure: "
            "torch_channels_last is a form of the cnn only"
        )
    out = Path(FLAGS.out)
    make_folder(out)
    if FLAGS.overwrite:
        (out / "peers.jsonl").unlink(missing_ok=True)

    jax.config.update("jax_platforms", "cpu")
    dataset = load_data(FLAGS.dataset)
    size = FLAGS.train_size or len(dataset.train.labels)
    if not max(batches) <= size <= len(dataset.train.labels):
        raise InputError(
            "--train_size must be from the largest of --batches to the "
            f"{len(dataset.train.labels)} training images; got {size}"
        )
    train = Split(dataset.train.images[:size], dataset.train.labels[:size])
    # Ends this process by an exception, with which `subprocess` ends its worker.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    session = start_session(
        out / "peers.jsonl", models, dataclasses.replace(dataset, train=train)
    )
    print(
        f"{len(plan)} measurements a round, {FLAGS.rounds} rounds, "
        f"{len(session.records)} records of earlier; results in {session.results}",
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="mnist_jax-peers-") as folder:
        save_arrays(Arrays(*train, *dataset.test), Path(folder))
        measure_all(session, plan, Path(folder))
    print(
        f"\n{write_tables(out, session.records)}\n\n"
        f"written: {out}/peers.jsonl, .md, .csv and peers_ratios.csv"
    )
    if session.failed:
        cells = ", ".join(
            f"{c.framework} {c.model} {c.batch_size}" for c in session.failed
        )
        raise InputError(
            f"{cells} failed, as the lines above say; mend that and run again, which "
            "measures only what is missing, or leave it out of --frameworks"
        )


def run() -> None:
    """Is the program."""
    flags.DEFINE_list("models", list(MODELS), "networks, comma-separated")
    flags.DEFINE_list("batches", ["128", "32"], "batch sizes, comma-separated")
    flags.DEFINE_list(
        "frameworks", list(FRAMEWORKS), f"some of {', '.join(FRAMEWORKS)}"
    )
    flags.DEFINE_integer("rounds", 5, "times that all is measured", lower_bound=1)
    flags.DEFINE_integer(
        "steady_epochs",
        None,
        "epochs after the first in each process; default "
        + ", ".join(f"{count} ({model})" for model, count in STEADY_EPOCHS.items()),
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "slow_rounds",
        1,
        "rounds after which a row that is far slower than the fastest peer is left out",
        lower_bound=1,
    )
    flags.DEFINE_float(
        "slow_ratio", 1.2, "how many times slower is far slower", lower_bound=1.0
    )
    flags.DEFINE_float(
        "others_limit",
        0.2,
        "cores that other programs may use in the mean during a measurement; if they "
        f"use more it is repeated, up to {TRIES} times, and does not count",
        lower_bound=0.0,
    )
    flags.DEFINE_integer(
        "train_size", None, "use the first N training images only", lower_bound=1
    )
    flags.DEFINE_string("dataset", "mnist", "data set")
    flags.DEFINE_string(
        "data_dir", None, "folder with its files; default $MNIST_JAX_DATA_DIR"
    )
    flags.DEFINE_string("out", "results/peers", "directory for the results")
    flags.DEFINE_boolean("overwrite", False, "forget what --out holds, measure anew")
    run_program(main)
