"""Times this project against PyTorch, Keras and plain Flax on the CPU.

python -m benchmarks.peers --rounds=3 --out=results/peers

It needs PyTorch, Keras and TensorFlow, which `make peers` installs. Each framework
trains in a process of its own. In a round, the processes of one network and batch size
take turns after each epoch, so that noise meets all of them; the others wait. Recorded
rounds are not repeated, so an interrupted benchmark resumes where it stopped.
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import platform
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax
from absl import flags

from mnist_jax.cli.flags import (
    define_data_dir_flag,
    define_numbers_flag,
    define_path_flag,
    load_data,
)
from mnist_jax.cli.main import run_program
from mnist_jax.data.types import Dataset
from mnist_jax.errors import InputError
from mnist_jax.records.environment import Environment, code_digest, current_environment
from mnist_jax.records.files import check_append, write_file
from mnist_jax.records.schema import append_jsonl, read_jsonl

from .frameworks import FRAMEWORKS, PEAK_CELL, Cell, PeerRecord, Setup
from .tables import format_tables, time_frame
from .turns import Conditions, measure
from .worker import EXAMPLES, Arrays, save_arrays

FLAGS = flags.FLAGS

# Images per epoch. Each epoch takes some tenths of a second, less than the episodes of
# one to three seconds in which shared hosts are slower.
EPOCH_IMAGES = {"mlp": 60_000, "lstm": 6_400, "cnn": 12_800} | dict.fromkeys(
    EXAMPLES, 2_560
)
PACKAGES = "jax jaxlib flax optax numpy torch keras tensorflow tensorflow-cpu".split()


def choose_frameworks(names: Sequence[str]) -> list[str]:
    """Returns the named frameworks, without torch_compile if there is no C++ compiler.

    Raises:
        InputError: a framework is unknown or needs a package that is not installed.
    """
    if not names or not set(names) <= set(FRAMEWORKS):
        raise InputError(
            f"--frameworks must be one or more of {', '.join(FRAMEWORKS)}; got "
            f"{','.join(names) or 'none'}"
        )
    packages = {package for name in names for package in FRAMEWORKS[name].packages}
    missing = {name for name in packages if importlib.util.find_spec(name) is None}
    if missing:
        found = [name for name in names if not missing & {*FRAMEWORKS[name].packages}]
        raise InputError(
            f"--frameworks={','.join(names)} needs {' and '.join(sorted(missing))}, "
            "not installed here; run `make peers`, which creates a separate "
            f"environment, or use only --frameworks={','.join(found)}"
        )
    if shutil.which("g++") or shutil.which("clang++") or "torch_compile" not in names:
        return list(names)
    print("torch_compile is skipped: it needs a C++ compiler, and none was found")
    return [name for name in names if name != "torch_compile"]


def make_plan(
    frameworks: Iterable[str], models: Iterable[str], batch_sizes: Iterable[int]
) -> list[list[Cell]]:
    """Returns the groups of a round, in order; the cells of a group take turns."""
    names = list(dict.fromkeys(frameworks))
    groups = [
        [Cell(f, model, size) for f in names if model in FRAMEWORKS[f].variants]
        for model in dict.fromkeys(models)
        for size in dict.fromkeys(batch_sizes)
    ]
    return [[PEAK_CELL], *filter(None, groups)]


def _versions() -> dict[str, str]:
    """Returns the versions of Python and of the benchmarked packages."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def make_setups(
    environment: Environment, dataset: Dataset, sizes: Mapping[str, int], epochs: int
) -> dict[str, Setup]:
    """Returns the setup of each model; the key '' is for the matmul peak.

    Args:
        environment: of this process.
        dataset: the dataset.
        sizes: training images of each model.
        epochs: number of epochs after the first.
    """
    peak = Setup(
        # The timed code is the package and the workers.
        code=code_digest(sorted(Path(__file__).parent.glob("*worker.py"))),
        device=environment.device,
        cores=environment.cores,
        versions=_versions(),
        dataset=dataset.name,
        checksum=dataset.checksum,
        train_images=0,
        steady_epochs=0,
    )
    return {PEAK_CELL.model: peak} | {
        model: dataclasses.replace(peak, train_images=size, steady_epochs=epochs)
        for model, size in sizes.items()
    }


def describe(record: PeerRecord) -> str:
    """Formats a measurement as a progress line."""
    name = f"{record.model:4} {record.batch_size:4} {record.framework:19}"
    if record.error is not None:
        return f"{name} FAILED: {record.error}"
    if record.cell == PEAK_CELL:
        return f"{name} {max(record.result.values()):8.1f} GFLOP/s"
    return (
        f"{name} {record.epoch_seconds:8.3f} s/epoch  "
        f"accuracy {record.result['test_accuracy']:.4f}  "
        f"{record.result['peak_rss_mb']:5,} MB"
    )


def run_rounds(
    conditions: Conditions, plan: Sequence[list[Cell]], rounds: int, results: Path
) -> tuple[list[PeerRecord], list[Cell]]:
    """Runs, records and prints the groups that are not in the results yet.

    Returns:
        All records with the same setup, earlier ones included, and the failed cells.
    """
    records = [
        record
        for record in read_jsonl(PeerRecord, results)
        if record.run == conditions.setups.get(record.model)
    ]
    done = {(record.round, record.cell) for record in records if record.result}
    failed: list[Cell] = []
    todo = [
        (number, cells)
        for number in range(1, rounds + 1)
        for cells in plan
        if not done.issuperset((number, cell) for cell in cells)
    ]
    total = rounds * len(plan)
    print(f"{len(todo)} of {total} measurements to run for {results}", flush=True)
    for count, (number, cells) in enumerate(todo, start=1):
        # What failed would fail in every round.
        cells = [cell for cell in cells if cell not in failed]
        if not cells:
            continue
        print(f"{count}/{len(todo)}  round {number}/{rounds}", flush=True)
        found = measure(conditions, number, cells)
        for record in found:
            append_jsonl(results, record)
            print(f"  {describe(record)}", flush=True)
        records += found
        failed += [record.cell for record in found if record.error is not None]
    return records, failed


def main() -> None:
    """Runs the missing measurements and prints the tables."""
    batch_sizes = FLAGS.batches
    models = list(EXAMPLES) if FLAGS.models == ["examples"] else FLAGS.models
    if not models or not set(models) <= EPOCH_IMAGES.keys():
        raise InputError(
            f"--models must be examples, or one or more of {', '.join(EPOCH_IMAGES)}; "
            f"got {','.join(models) or 'none'}"
        )
    plan = make_plan(choose_frameworks(FLAGS.frameworks), models, batch_sizes)
    jax.config.update("jax_platforms", "cpu")
    environment = current_environment()
    dataset = load_data(FLAGS.dataset)
    images, labels = dataset.train
    sizes = {
        model: min(FLAGS.train_size or EPOCH_IMAGES[model], len(labels))
        for model in models
    }
    out = Path(FLAGS.out)
    results = out / "peers.jsonl"
    check_append(results)
    if FLAGS.overwrite:
        results.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="mnist_jax-peers-") as name:
        for model, size in sizes.items():
            (Path(name) / model).mkdir()
            arrays = Arrays(images[:size], labels[:size], *dataset.test)
            save_arrays(arrays, Path(name) / model)
        conditions = Conditions(
            setups=make_setups(environment, dataset, sizes, FLAGS.steady_epochs),
            environment=environment,
            arrays=Path(name),
        )
        records, failed = run_rounds(conditions, plan, FLAGS.rounds, results)
    markdown = format_tables(records)
    write_file(out / "peers.md", markdown + "\n")
    write_file(out / "peers.csv", time_frame(records).to_csv(index=False))
    print(f"\n{markdown}\n\nwritten: {out}/peers.jsonl, .md, .csv")
    if failed:
        names = ", ".join(" ".join(map(str, cell)) for cell in failed)
        raise InputError(
            f"{names} failed (see above); fix the cause and run again, which repeats "
            "only what is missing, or remove the framework from --frameworks"
        )


def run() -> None:
    """Entry point."""
    flags.DEFINE_list(
        "models", ["mlp", "lstm", "cnn"], "networks to time, comma-separated"
    )
    define_numbers_flag("batches", [128, 32], "batch sizes, comma-separated")
    flags.DEFINE_list(
        "frameworks",
        list(FRAMEWORKS),
        f"one or more of {', '.join(FRAMEWORKS)}, comma-separated",
    )
    flags.DEFINE_integer(
        "rounds", 3, "repetitions with new processes and seeds", lower_bound=1
    )
    flags.DEFINE_integer(
        "steady_epochs", 12, "epochs after the first in each process", lower_bound=1
    )
    flags.DEFINE_integer(
        "train_size", None, "training images of an epoch, the first ones", lower_bound=1
    )
    flags.DEFINE_string("dataset", "mnist", "name of the dataset")
    define_data_dir_flag()
    define_path_flag("out", "results/peers", "directory for the results")
    flags.DEFINE_boolean("overwrite", False, "first delete peers.jsonl in --out")
    run_program(main)


if __name__ == "__main__":
    run()
