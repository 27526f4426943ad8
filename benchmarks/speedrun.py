"""Measures how long a recipe trains until its mean test accuracy reaches a target.

python -m benchmarks.speedrun --target=0.99

A recipe is a file of config flags in experiments/recipes. Each of --seeds seeds trains
alone on all cores. The clock runs over training and averaging, with the data on the
device; compiling is timed apart. docs/records.md has the rules and the records.
"""

import contextlib
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from absl import flags
from scipy import stats

from mnist_jax.cli.config_flags import config_from_flags
from mnist_jax.cli.flags import (
    define_cluster_flags,
    define_machine_flags,
    define_path_flag,
)
from mnist_jax.cli.main import run_program, start_jax
from mnist_jax.config import DATASETS, MODELS, TrainConfig
from mnist_jax.data.datasets import load_dataset
from mnist_jax.errors import InputError
from mnist_jax.records.environment import Environment
from mnist_jax.records.files import check_append
from mnist_jax.records.schema import RunRecord, append_jsonl, read_jsonl
from mnist_jax.reporting.statistics import median_range, ratio_interval, spread
from mnist_jax.reporting.tables import markdown_table, provenance
from mnist_jax.training import distributed
from mnist_jax.training.fit import finish, fit
from mnist_jax.training.prepare import prepare

from .peers.frameworks import KEEP_MEMORY
from .processes import Worker
from .published.systems import read_flag_file
from .throughput import measure_starts

FLAGS = flags.FLAGS
RECORDS = Path(__file__).parent / "results" / "speedrun.jsonl"
RECIPES = Path(__file__).parents[1] / "experiments" / "recipes"
NAMED = [name for name in DATASETS if name not in ("auto", "idx")]
# What the rules allow in a recipe: all training images, the usual test images.
RULES: dict[str, list[Any]] = {
    "dataset": NAMED,
    "validation": ["none"],
    "train_size": [None],
    "split": ["official"],
}
SIGNIFICANCE = 0.01  # of the one-sided t-test
# The published PyTorch recipe of `torch_speedrun`, as installed and with malloc tuned.
PEERS = {"PyTorch": {}, "PyTorch + malloc": KEEP_MEMORY}


@dataclasses.dataclass(frozen=True)
class PeerRuns:
    """The runs of a peer, in turns with those of a recipe."""

    name: str
    accuracies: list[float]
    seconds: list[float]


@dataclasses.dataclass(frozen=True)
class SpeedRecord:
    """A recipe's runs, one seed after the other, counted from 0."""

    recipe: str
    target: float
    config: TrainConfig
    checksum: str  # of the dataset
    accuracies: list[float]  # on the test set, by seed
    seconds: list[float]  # of training, by seed
    compile_seconds: float  # with an empty compilation cache
    cached_compile_seconds: float | None  # None: none was loaded from the cache
    parameters: int
    environment: Environment
    tta_accuracies: list[float] = dataclasses.field(default_factory=list)
    peers: list[PeerRuns] = dataclasses.field(default_factory=list)

    @property
    def p_value(self) -> float:
        """Of the one-sided t-test that the mean accuracy is above the target."""
        test = stats.ttest_1samp(self.accuracies, self.target, alternative="greater")
        return float(test.pvalue)

    @property
    def reached(self) -> bool:
        """Whether the mean accuracy is significantly above the target."""
        return self.p_value < SIGNIFICANCE

    @property
    def median_seconds(self) -> float:
        """Median training seconds over the seeds."""
        return statistics.median(self.seconds)


def read_recipe(path: Path) -> TrainConfig:
    """Returns the config of a recipe, a file of flags, if it follows the rules."""
    config = config_from_flags(read_flag_file(path))
    for name, allowed in RULES.items():
        if (value := getattr(config, name)) not in allowed:
            raise InputError(
                f"the recipe {path} must have --{name}={' or '.join(map(str, allowed))}"
                f", by the rules in docs/records.md; got {value}"
            )
    return config


def best_recipe(
    records: Sequence[SpeedRecord], target: float, dataset: str, model: str | None
) -> str:
    """Returns the recipe whose latest record reached a target in the shortest time."""
    fits = [
        record
        for record in {record.recipe: record for record in records}.values()
        if dataclasses.replace(record, target=target).reached
        and record.config.dataset == dataset
        and model in (None, record.config.model)
    ]
    if not fits:
        raise InputError(
            f"no recorded recipe of {model or 'any network'} reaches --target="
            f"{target:g} on {dataset}; give another, or a --recipe to try"
        )
    fastest = min(fits, key=lambda record: record.median_seconds)
    return fastest.recipe


def run_recipes(
    paths: Sequence[Path],
    target: float,
    seeds: int,
    data_dir: str | None = None,
    peers: Mapping[str, Worker] | None = None,
) -> list[SpeedRecord]:
    """Trains recipes and peers, the seeds of all in turn, and measures their starts.

    If a loss becomes NaN, there is no record: no seed is dropped.
    """
    configs, peers = {path.stem: read_recipe(path) for path in paths}, peers or {}
    experiments = {
        name: prepare(config, load_dataset(config.dataset, data_dir))
        for name, config in configs.items()
    }
    runs: dict[str, list[RunRecord]] = {name: [] for name in configs}
    raced = {name: PeerRuns(name, [], []) for name in (*configs, *peers)}
    for seed in range(seeds):
        for name, turns in raced.items():
            if name in experiments:
                [(run, _)] = finish(fit(experiments[name], [seed]))
                runs[name].append(run)
                accuracy = run.test_accuracy
                seconds = sum(epoch.train_seconds for epoch in run.epochs)
            else:
                answer = peers[name].ask(seed)
                accuracy, seconds = answer["accuracy"], answer["seconds"]
            turns.accuracies.append(accuracy)
            turns.seconds.append(seconds)
            print(
                f"{name}, seed {seed}: test accuracy {accuracy:.4f} in {seconds:.2f} s"
            )
    records: list[SpeedRecord] = []
    for path in paths:
        name, first = path.stem, runs[path.stem][0]
        cold, warm = measure_starts(name, {"flagfile": path, "epochs": 1}, 1)
        shifted = [run.tta_accuracy for run in runs[name]]
        records.append(
            SpeedRecord(
                recipe=name,
                target=target,
                config=configs[name],
                checksum=first.checksum,
                accuracies=raced[name].accuracies,
                seconds=raced[name].seconds,
                compile_seconds=cold["compile s"],
                cached_compile_seconds=warm["compile s"] if warm["cached"] else None,
                parameters=first.parameters,
                environment=first.environment,
                tta_accuracies=[value for value in shifted if value is not None],
                peers=[] if records else [raced[peer] for peer in peers],
            )
        )
    return records


def speed_frame(records: Sequence[SpeedRecord]) -> pd.DataFrame:
    """Returns one row per record, and after it one for each of its peers."""
    rows = []
    for record in records:
        p, tta, seconds = record.p_value, record.tta_accuracies, record.median_seconds
        config, cached = record.config, record.cached_compile_seconds
        rows.append(
            {
                "data": config.dataset,
                "target": f"{record.target:g}",
                "network": config.name,
                "test accuracy": spread(record.accuracies),
                "with TTA": spread(tta) if tta else "-",
                "reached": f"{'yes' if record.reached else 'no'} "
                f"(p {f'{p:.1g}' if p > 1e-9 else '< 1e-9'})",
                "training s": f"{median_range(record.seconds):.2f}",
                "with compiling": f"{seconds + record.compile_seconds:.1f}",
                "cached": "-" if cached is None else f"{seconds + cached:.1f}",
                "epochs": config.epochs,
                "parameters": f"{record.parameters:,}",
                "recipe": record.recipe,
            }
        )
        rows += [
            {
                **dict.fromkeys(rows[0], "-"),
                "network": peer.name,
                "test accuracy": spread(peer.accuracies),
                "training s": f"{median_range(peer.seconds):.2f}",
            }
            for peer in record.peers
        ]
    frame = pd.DataFrame(rows)
    return frame.drop(columns=["with TTA"] if all(frame["with TTA"] == "-") else [])


def format_speed(records: Sequence[SpeedRecord]) -> str:
    """Formats the latest record of each recipe and target, a table per machine."""
    models = [*MODELS, *(r.config.model for r in records)]  # custom networks come last
    latest = {
        (r.config.dataset, models.index(r.config.model), r.target, r.recipe): r
        for r in records
    }
    machines: dict[Any, list[SpeedRecord]] = {}
    for _, record in sorted(latest.items()):
        machines.setdefault(record.environment.compared(), []).append(record)
    tables = []
    for rows in machines.values():
        notes = [
            *provenance(rows),
            f"reached: one-sided t-test of the mean over seeds, p < {SIGNIFICANCE:g}; "
            "training s: median [min, max] over seeds; with compiling: its seconds "
            "added, with an empty and with a full cache",
        ]
        tables.append(markdown_table(speed_frame(rows), notes))
    return "\n\n".join(tables)


def format_fastest(records: Sequence[SpeedRecord]) -> str:
    """Formats the fastest CNN that reached each target on MNIST, for the README."""
    fastest = {
        record.target: record
        for record in sorted(records, key=lambda record: -record.median_seconds)
        if record.reached
        and (record.config.dataset, record.config.model) == ("mnist", "cnn")
    }
    rows = [
        {
            "MNIST, CNN": f"{100 * record.target:g} %",
            "test accuracy": spread(record.accuracies),
            "training s": f"{median_range(record.seconds):.2f}",
            "parameters": f"{record.parameters:,}",
        }
        for _, record in sorted(fastest.items())
    ]
    return markdown_table(pd.DataFrame(rows))


def main() -> None:
    """Trains the recipe, prints its table and records it."""
    out = Path(FLAGS.out) / "speedrun.jsonl"
    check_append(out)
    name = FLAGS.recipe or best_recipe(
        read_jsonl(SpeedRecord, RECORDS), FLAGS.target, FLAGS.dataset, FLAGS.model
    )
    paths = [RECIPES / f"{each}.cfg" for each in (name, FLAGS.against) if each]
    start_jax()
    data_dir = [f"--data_dir={FLAGS.data_dir}"] if FLAGS.data_dir else []
    with contextlib.ExitStack() as stack:
        peers = {
            name: stack.enter_context(
                Worker(f"{__package__}.torch_speedrun", *data_dir, environment=settings)
            )
            for name, settings in (PEERS.items() if FLAGS.peers else ())
        }
        records = run_recipes(paths, FLAGS.target, FLAGS.seeds, FLAGS.data_dir, peers)
    for record in records if distributed.is_writer() else ():
        append_jsonl(out, record)
    print(f"\n{format_speed(records)}")
    if FLAGS.against:
        first, second = records
        ratio = ratio_interval([(second.seconds, first.seconds)], 50)
        print(
            f"\n{first.recipe} trains {ratio:.2f} times as fast as {second.recipe} "
            "(medians, 95 % interval)"
        )
    print(f"\nappended to {out}")


def run() -> None:
    """Entry point."""
    flags.DEFINE_float("target", 0.99, "mean test accuracy to reach", 0, 1)
    names = sorted(path.stem for path in RECIPES.glob("*.cfg"))
    help = "recipe; default: the fastest recorded one"
    flags.DEFINE_enum("recipe", None, names, help)
    flags.DEFINE_enum("against", None, names, "another recipe to train in turns")
    flags.DEFINE_enum("dataset", "mnist", NAMED, "dataset")
    flags.DEFINE_enum("model", None, list(MODELS), "network; default: any")
    flags.DEFINE_integer("seeds", 10, "seeds, counted from 0, one by one", 2)
    flags.DEFINE_boolean("peers", False, "train a PyTorch recipe for 99 % in turns too")
    define_machine_flags()
    define_cluster_flags()
    define_path_flag("out", "results", "folder of the speedrun.jsonl to append to")
    run_program(main)


if __name__ == "__main__":
    run()
