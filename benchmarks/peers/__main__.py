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
from collections.abc import Iterable, Sequence
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
from mnist_jax.config import MODELS
from mnist_jax.errors import InputError
from mnist_jax.records.environment import code_digest, current_environment
from mnist_jax.records.files import check_append, write_file
from mnist_jax.records.schema import append_jsonl, read_jsonl

from .frameworks import FRAMEWORKS, PEAK, Cell, PeerRecord, Setup
from .tables import format_tables
from .turns import Conditions, measure
from .worker import EXAMPLES, Arrays, save_arrays

FLAGS = flags.FLAGS

# Images per epoch. Each epoch takes some tenths of a second, less than the episodes of
# one to three seconds in which shared hosts are slower.
EPOCH_IMAGES = {"mlp": 60_000, "lstm": 6_400, "cnn": 12_800}
CUSTOM_IMAGES = 2_560
PACKAGES = "jax jaxlib flax optax numpy torch keras tensorflow tensorflow-cpu".split()


def make_plan(
    frameworks: Iterable[str], models: Iterable[str], batch_sizes: Iterable[int]
) -> list[list[Cell]]:
    """Returns the groups of a round, in order; the cells of a group take turns."""
    rows = [(name, FRAMEWORKS[name].models) for name in dict.fromkeys(frameworks)]
    groups = [
        [Cell(name, model, size) for name, has in rows if has is None or model in has]
        for model in dict.fromkeys(models)
        for size in dict.fromkeys(batch_sizes)
    ]
    return [[PEAK], *filter(None, groups)]


def missing(
    records: Iterable[PeerRecord], plan: Sequence[list[Cell]], rounds: int
) -> list[tuple[int, list[Cell]]]:
    """Returns the rounds and groups of a plan that are not wholly recorded."""
    done = {(record.round, record.cell) for record in records if record.result}
    return [
        (number, cells)
        for number in range(1, rounds + 1)
        for cells in plan
        if not done.issuperset((number, cell) for cell in cells)
    ]


def check_installed(plan: Iterable[Sequence[Cell]]) -> None:
    """Raises InputError if a package that the plan needs is not installed."""
    names = {cell.framework for cells in plan for cell in cells if cell != PEAK}
    packages = {package for name in names for package in FRAMEWORKS[name].packages}
    if absent := {name for name in packages if importlib.util.find_spec(name) is None}:
        raise InputError(
            f"{' and '.join(sorted(absent))} not installed here; run `make peers`, "
            "which creates a separate environment, or use only --frameworks=ours,flax"
        )


def _versions() -> dict[str, str]:
    """Returns the versions of Python and of the benchmarked packages."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def describe(record: PeerRecord) -> str:
    """Formats a measurement as a progress line."""
    name = f"{record.model:4} {record.batch_size:4} {record.framework:19}"
    if record.error is not None:
        return f"{name} FAILED: {record.error}"
    if record.cell == PEAK:
        return f"{name} {max(record.result.values()):8.1f} GFLOP/s"
    return (
        f"{name} {record.epoch_seconds:8.3f} s/epoch  "
        f"accuracy {record.result['test_accuracy']:.4f}  "
        f"{record.result['peak_rss_mb']:5,} MB"
    )


def run_rounds(
    conditions: Conditions, plan: Sequence[list[Cell]], rounds: int, results: Path
) -> list[PeerRecord]:
    """Runs, records and prints the groups that are not in the results yet.

    Returns:
        All records with the same setup, earlier ones included.
    """
    records = [
        record
        for record in read_jsonl(PeerRecord, results)
        if record.run == conditions.setups.get(record.model)
    ]
    failed: set[Cell] = set()  # which would fail in every round
    todo = missing(records, plan, rounds)
    total = rounds * len(plan)
    print(f"{len(todo)} of {total} measurements to run for {results}", flush=True)
    for count, (number, cells) in enumerate(todo, start=1):
        print(f"{count}/{len(todo)}  round {number}/{rounds}", flush=True)
        if cells := [cell for cell in cells if cell not in failed]:
            for record in measure(conditions, number, cells):
                append_jsonl(results, record)
                print(f"  {describe(record)}", flush=True)
                records.append(record)
                if record.error is not None:
                    failed.add(record.cell)
    return records


def main() -> None:
    """Runs the missing measurements and prints the tables."""
    models = EXAMPLES if FLAGS.models == ["examples"] else FLAGS.models
    short = {f"examples/{model}": model for model in EXAMPLES}
    models = [short.get(model, model) for model in models]
    if unknown := [m for m in models if m not in MODELS and ":" not in m]:
        raise InputError(
            f"--models must be examples, or some of {', '.join(MODELS)} and "
            f"path/to/file.py:Class; got {unknown[0]}"
        )
    frameworks = list(FLAGS.frameworks)
    if not (shutil.which("g++") or shutil.which("clang++")):
        frameworks = [name for name in frameworks if name != "torch_compile"]
        print("torch_compile is left out: it needs a C++ compiler")
    plan = make_plan(frameworks, models, FLAGS.batches)
    check_installed(plan)
    jax.config.update("jax_platforms", "cpu")
    dataset = load_data(FLAGS.dataset)
    environment, size = current_environment(), len(dataset.train.labels)
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
    setups = {PEAK.model: peak}
    for model in models:
        images = FLAGS.train_size or EPOCH_IMAGES.get(model, CUSTOM_IMAGES)
        setups[model] = dataclasses.replace(
            peak, train_images=min(images, size), steady_epochs=FLAGS.steady_epochs
        )
    out = Path(FLAGS.out)
    results = out / "peers.jsonl"
    check_append(results)
    if FLAGS.overwrite:
        results.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="mnist_jax-peers-") as folder:
        save_arrays(Arrays(*dataset.train, *dataset.test), Path(folder))
        conditions = Conditions(setups, environment, Path(folder))
        records = run_rounds(conditions, plan, FLAGS.rounds, results)
    markdown = format_tables(records)
    write_file(out / "peers.md", markdown + "\n")
    print(f"\n{markdown}\n\nwritten: {out}/peers.jsonl and .md")
    if missing(records, plan, FLAGS.rounds):
        raise InputError(
            "some measurements failed (see above); run again to repeat what is missing"
        )


def run() -> None:
    """Entry point."""
    custom = "examples, or comma-separated networks, also path/to/file.py:Class"
    flags.DEFINE_list("models", list(MODELS), custom)
    define_numbers_flag("batches", [128, 32], "batch sizes, comma-separated")
    names = ", ".join(FRAMEWORKS)
    flags.DEFINE_list("frameworks", list(FRAMEWORKS), f"rows of the table: {names}")
    flags.register_validator(
        "frameworks", set(FRAMEWORKS).issuperset, f"must be one or more of {names}"
    )
    flags.DEFINE_integer("rounds", 3, "repetitions with new processes and seeds", 1)
    flags.DEFINE_integer("steady_epochs", 12, "epochs after the first of a process", 1)
    flags.DEFINE_integer("train_size", None, "first training images of an epoch", 1)
    flags.DEFINE_string("dataset", "mnist", "name of the dataset")
    define_data_dir_flag()
    define_path_flag("out", "results/peers", "directory for the results")
    flags.DEFINE_boolean("overwrite", False, "first delete peers.jsonl in --out")
    run_program(main)


if __name__ == "__main__":
    run()
