"""Times this project against PyTorch, Keras and plain Flax on the CPU.

python -m benchmarks.peers --rounds=3 --out=results/peers

It needs PyTorch, Keras and TensorFlow, which `make peers` installs. Each framework
trains in a process of its own. In a round, the processes of one network and batch size
take turns after each epoch, so that noise meets all of them; the others wait. Recorded
rounds are not repeated, so an interrupted benchmark resumes where it stopped.
"""

import contextlib
import importlib.metadata
import itertools
import shutil
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from absl import flags

from mnist_jax.cli.flags import define_data_dir_flag, define_list_flag, define_path_flag
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.config import MODELS, NAMED_DATASETS, TrainConfig
from mnist_jax.data.datasets import load_dataset
from mnist_jax.models.custom import network_sha256
from mnist_jax.records.environment import (
    check_packages,
    code_digest,
    current_environment,
)
from mnist_jax.records.files import check_append, write_file
from mnist_jax.records.schema import append_jsonl, read_jsonl

from .frameworks import FRAMEWORKS, PACKAGES, PeerRecord, Race
from .tables import format_ratios
from .turns import take_turns
from .worker import EXAMPLES, save_arrays

FLAGS = flags.FLAGS

# Images per epoch. Each epoch takes some tenths of a second, less than the episodes of
# one to three seconds in which shared hosts are slower.
EPOCH_IMAGES = {"mlp": 60_000, "lstm": 6_400, "cnn": 12_800}
CUSTOM_IMAGES = 2_560


def _versions() -> str:
    """Returns the versions of the packages of the peers."""
    versions = []
    for name in ("torch", "keras", "tensorflow", "tensorflow-cpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return ", ".join(versions)


def frameworks_for(model: str, names: Iterable[str]) -> list[str]:
    """Returns those of the frameworks that have a network, each once."""
    have = {name: FRAMEWORKS[name].models for name in names}
    return [name for name, models in have.items() if models is None or model in models]


def run_rounds(
    races: Mapping[Race, Sequence[str]], rounds: int, results: Path, arrays: Path
) -> list[PeerRecord]:
    """Runs, records and prints the races of which a framework is not recorded yet.

    Returns:
        All records of these races on this machine.
    """
    machine = current_environment().compared()
    records = [
        record
        for record in read_jsonl(PeerRecord, results)
        if record.race in races and record.environment.compared() == machine
    ]
    done = {(record.race, record.framework, record.round) for record in records}
    for number in range(1, rounds + 1):
        for race, names in races.items():
            if done.issuperset((race, name, number) for name in names):
                continue
            batch = f"batches of {race.batch_size}"
            print(f"round {number}/{rounds}: {race.model}, {batch}", flush=True)
            environment = current_environment()
            measured = take_turns(race, names, number, arrays)
            for name in names:
                result = measured[name]
                record = PeerRecord(race, name, number, environment, result)
                append_jsonl(results, record)
                records.append(record)
                print(
                    f"  {name:19} {statistics.median(record.steady_seconds):8.3f} "
                    f"s/epoch  accuracy {result.test_accuracy:.4f}  "
                    f"{result.peak_rss_mb:5,} MB",
                    flush=True,
                )
    return records


def main() -> None:
    """Runs the missing measurements and prints the tables."""
    frameworks = list(FLAGS.frameworks)
    if not (shutil.which("g++") or shutil.which("clang++")):
        frameworks = [name for name in frameworks if name != "torch_compile"]
        print("torch_compile is left out: it needs a C++ compiler")
    start_jax(platform="cpu")  # as in the workers
    dataset, here = load_dataset(FLAGS.dataset, FLAGS.data_dir), Path(__file__).parent
    # The timed code is the package, the workers and their networks.
    code = code_digest([*sorted(here.glob("*worker.py")), here / "torch_networks.py"])
    versions = _versions()
    races: dict[Race, list[str]] = {}
    models: list[str] = []
    for name in FLAGS.models:
        models += EXAMPLES if name == "examples" else [name]
    for model, batch_size in itertools.product(models, FLAGS.batches):
        images = FLAGS.train_size or EPOCH_IMAGES.get(model, CUSTOM_IMAGES)
        race = Race(
            model=model,
            batch_size=batch_size,
            train_images=min(images, len(dataset.train.labels)),
            steady_epochs=FLAGS.steady_epochs,
            dataset=dataset.name,
            checksum=dataset.checksum,
            code=code,
            packages=versions,
            source_sha256=network_sha256(TrainConfig(model=model)),
        )
        races[race] = frameworks_for(model, frameworks)
    workers = {FRAMEWORKS[name].worker for names in races.values() for name in names}
    packages = [name for worker in workers for name in PACKAGES.get(worker, ())]
    check_packages("this choice of --frameworks", packages, "peers")
    out = Path(FLAGS.out)
    results = out / "peers.jsonl"
    check_append(results)
    with tempfile.TemporaryDirectory(prefix="mnist_jax-peers-") as folder:
        save_arrays(dataset, Path(folder))
        records = run_rounds(races, FLAGS.rounds, results, Path(folder))
    if records:
        markdown = format_ratios(records)
        write_file(out / "peers.md", markdown + "\n")
        print(f"\n{markdown}\n\nwritten: {out}/peers.jsonl and .md")


def run() -> None:
    """Entry point."""
    define_list_flag(
        "models",
        MODELS,
        "networks to race; examples: those of the folder examples/",
        lambda name: name if name == "examples" else TrainConfig(model=name).model,
    )
    define_list_flag("batches", [128, 32], "batch sizes", flags.IntegerParser(1).parse)
    names = list(FRAMEWORKS)
    rows = f"rows of the table, some of {', '.join(names)}"
    define_list_flag("frameworks", names, rows, flags.EnumParser(names).parse)
    flags.DEFINE_integer("rounds", 3, "repetitions with new processes and seeds", 1)
    flags.DEFINE_integer("steady_epochs", 12, "epochs after the first of a process", 1)
    flags.DEFINE_integer("train_size", None, "first training images of an epoch", 1)
    flags.DEFINE_enum("dataset", "mnist", NAMED_DATASETS, "dataset")
    define_data_dir_flag()
    define_path_flag("out", "results/peers", "directory for the results")
    run_program(main)


if __name__ == "__main__":
    run()
