"""Times this project against PyTorch, Keras and plain Flax on the CPU, side by side.

python -m benchmarks.peers --rounds=5 --out=results/peers

It needs PyTorch, Keras and TensorFlow beside the project: `make peers` installs them.
Each measurement is a process of its own, one at a time; a round takes every framework,
network and batch size once in turn. A recorded measurement is not repeated, so an
interrupted run resumes where it stopped.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import math
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
from absl import flags

from mnist_jax.cli.flags import (
    chosen_models,
    define_data_dir_flag,
    define_models_flag,
    load_data,
)
from mnist_jax.cli.main import run_program
from mnist_jax.data.types import Dataset, Split
from mnist_jax.errors import InputError
from mnist_jax.records.environment import Environment, code_digest, current_environment
from mnist_jax.records.files import make_folder, write_file
from mnist_jax.records.schema import append_jsonl, read_jsonl

from .frameworks import FRAMEWORKS, PEAK_CELL, Cell, PeerRecord, Setup
from .processes import Conditions, measure
from .tables import format_tables, time_frame
from .worker import Arrays, save_arrays

FLAGS = flags.FLAGS

STEADY_EPOCHS = {"mlp": 3, "lstm": 1, "cnn": 1}
PACKAGES = "jax jaxlib flax optax numpy torch keras tensorflow tensorflow-cpu".split()
TRIES = 3  # of a measurement that other programs disturb


def choose_frameworks(names: Sequence[str]) -> list[str]:
    """Returns the frameworks that can be measured here.

    Raises:
        InputError: one is unknown, or needs a package that is not installed.
    """
    if not names or not set(names) <= set(FRAMEWORKS):
        raise InputError(
            f"--frameworks must be one or more of {', '.join(FRAMEWORKS)}; got "
            f"{','.join(names) or 'none'}"
        )
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
    if shutil.which("g++") or shutil.which("clang++") or "torch_compile" not in names:
        return list(names)
    print("torch.compile is left out: it needs a C++ compiler, and there is none")
    return [name for name in names if name != "torch_compile"]


def make_plan(
    frameworks: Iterable[str], models: Iterable[str], batch_sizes: Sequence[int]
) -> list[Cell]:
    """Returns the measurements of one round, in order.

    Raises:
        InputError: there are none.
    """
    plan = dict.fromkeys(
        Cell(framework, model, batch_size)
        for model in models
        for batch_size in batch_sizes
        for framework in frameworks
        if model in FRAMEWORKS[framework].variants
    )
    if not plan:
        raise InputError(
            "--frameworks and --models leave nothing to measure: torch_channels_last "
            "is a variant of the cnn only, and torch_compile needs a C++ compiler"
        )
    return [PEAK_CELL, *plan]


def take_images(dataset: Dataset, size: int | None, min_size: int) -> Dataset:
    """Returns a data set with its first `size` training images, None for all.

    Raises:
        InputError: there are fewer than `size`, or it is less than `min_size`.
    """
    images, labels = dataset.train
    size = len(labels) if size is None else size
    if not min_size <= size <= len(labels):
        raise InputError(
            "--train_size must be from the largest of --batches to the "
            f"{len(labels)} training images; got {size}"
        )
    return dataclasses.replace(dataset, train=Split(images[:size], labels[:size]))


def _versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that compute."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def make_setups(
    environment: Environment, dataset: Dataset, steady_epochs: Mapping[str, int]
) -> dict[str, Setup]:
    """Returns each model's setup, and that of the machine's peak under ''."""
    setup = Setup(
        # Of all that is timed: the package and the workers.
        code=code_digest(sorted(Path(__file__).parent.glob("*worker.py"))),
        device=environment.device,
        cores=environment.cores,
        versions=_versions(),
        dataset=dataset.name,
        checksum=dataset.checksum,
        train_images=len(dataset.train.labels),
        steady_epochs=0,
    )
    return {
        model: dataclasses.replace(setup, steady_epochs=epochs)
        for model, epochs in {PEAK_CELL.model: 0, **steady_epochs}.items()
    }


def describe(record: PeerRecord) -> str:
    """Formats a measurement as a line of progress."""
    name = f"{record.model:4} {record.batch_size:4} {record.framework:19}"
    if record.error is not None:
        return f"{name} FAILED: {record.error}"
    if record.cell == PEAK_CELL:
        values = f"{max(record.result.values()):8.1f} GFLOP/s"
    else:
        values = (
            f"{record.epoch_seconds:8.3f} s/epoch  "
            f"accuracy {record.result['test_accuracy']:.4f}  "
            f"{record.result['peak_rss_mb']:5,} MB"
        )
    ignored = "  DISTURBED, does not count" if record.disturbed else ""
    return f"{name} {values}  others {record.others_cores:.2f} cores{ignored}"


def run_rounds(
    conditions: Conditions, plan: Sequence[Cell], rounds: int, results: Path
) -> tuple[list[PeerRecord], list[Cell]]:
    """Measures, round by round, what the results lack, and prints each measurement.

    Returns:
        The records of the same setup, earlier ones included, and the measurements that
        failed.
    """
    records = [
        record
        for record in read_jsonl(PeerRecord, results)
        if record.run == conditions.setups.get(record.model)
    ]
    done = {(record.round, record.cell) for record in records if record.is_valid}
    numbers = range(1, rounds + 1)
    cells = [(n, cell) for n in numbers for cell in plan if (n, cell) not in done]
    total = rounds * len(plan)
    print(f"{len(cells)} of {total} measurements to make, for {results}", flush=True)
    failed: list[Cell] = []
    for index, (number, cell) in enumerate(cells, start=1):
        for _ in range(TRIES):
            if cell in failed:  # it would fail again in every round
                break
            record = measure(conditions, number, cell)
            append_jsonl(results, record)
            records.append(record)
            if record.error is not None:
                failed.append(cell)
            position = f"{index}/{len(cells)}  round {number}/{rounds}"
            print(f"{position}  {describe(record)}", flush=True)
            if not record.disturbed:
                break
    return records, failed


def write_tables(out: Path, records: Sequence[PeerRecord]) -> str:
    """Writes the tables as Markdown and CSV; returns the Markdown."""
    markdown = format_tables(records)
    write_file(out / "peers.md", markdown + "\n")
    write_file(out / "peers.csv", time_frame(records).to_csv(index=False))
    return markdown


def _check_flags() -> None:
    """Refuses values that the flags' own bounds let pass."""
    for word in FLAGS.batches or ["none"]:
        if not (word.isascii() and word.isdigit() and int(word) >= 1):
            raise InputError(f"--batches must be whole numbers from 1; got {word}")
    if math.isnan(FLAGS.others_limit):
        raise InputError("--others_limit must be a number; got nan")


def main() -> None:
    """Measures as the flags ask for."""
    _check_flags()
    models, batch_sizes = chosen_models(), list(map(int, FLAGS.batches))
    plan = make_plan(choose_frameworks(FLAGS.frameworks), models, batch_sizes)
    jax.config.update("jax_platforms", "cpu")
    dataset = take_images(load_data(FLAGS.dataset), FLAGS.train_size, max(batch_sizes))
    out, environment = Path(FLAGS.out), current_environment()
    steady_epochs = {m: FLAGS.steady_epochs or STEADY_EPOCHS[m] for m in models}
    results = out / "peers.jsonl"
    make_folder(out)
    if FLAGS.overwrite:
        results.unlink(missing_ok=True)
    # Ends this process by an exception, on which `subprocess` kills its worker.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="mnist_jax-peers-") as name:
        save_arrays(Arrays(*dataset.train, *dataset.test), Path(name))
        conditions = Conditions(
            setups=make_setups(environment, dataset, steady_epochs),
            environment=environment,
            arrays=Path(name),
            others_limit=FLAGS.others_limit,
        )
        records, failed = run_rounds(conditions, plan, FLAGS.rounds, results)
    print(f"\n{write_tables(out, records)}\n\nwritten: {out}/peers.jsonl, .md, .csv")
    if failed:
        names = ", ".join(" ".join(map(str, cell)) for cell in failed)
        raise InputError(
            f"{names} failed, as the lines above say; fix that and run again, which "
            "measures only what is missing, or leave it out of --frameworks"
        )


def run() -> None:
    """Entry point."""
    define_models_flag("time")
    flags.DEFINE_list("batches", ["128", "32"], "batch sizes, comma-separated")
    flags.DEFINE_list(
        "frameworks",
        list(FRAMEWORKS),
        f"one or more of {', '.join(FRAMEWORKS)}, comma-separated",
    )
    flags.DEFINE_integer("rounds", 5, "times that all is measured", lower_bound=1)
    defaults = ", ".join(f"{count} ({model})" for model, count in STEADY_EPOCHS.items())
    flags.DEFINE_integer(
        "steady_epochs",
        None,
        f"epochs after the first in each process; default {defaults}",
        lower_bound=1,
    )
    flags.DEFINE_float(
        "others_limit",
        0.2,
        "cores that other programs may use on average during a measurement; one where "
        f"they use more does not count and is repeated, up to {TRIES} times in all",
        lower_bound=0.0,
    )
    flags.DEFINE_integer(
        "train_size", None, "use the first N training images only", lower_bound=1
    )
    flags.DEFINE_string("dataset", "mnist", "data set")
    define_data_dir_flag()
    flags.DEFINE_string("out", "results/peers", "directory for the results")
    flags.DEFINE_boolean("overwrite", False, "delete the peers.jsonl in --out first")
    run_program(main)
