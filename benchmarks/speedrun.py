"""Measures how long a recipe trains until its mean test accuracy reaches a target.

python -m benchmarks.speedrun --target=0.99

A recipe is a file of config flags in experiments/recipes. Each of --seeds seeds trains
alone on all cores. The clock runs over training and averaging, with the data on the
device; compiling is timed apart. docs/records.md has the rules and the records.
"""

import contextlib
import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
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
from mnist_jax.config import MODELS, NAMED_DATASETS, TrainConfig, as_text
from mnist_jax.data.datasets import load_dataset
from mnist_jax.errors import InputError
from mnist_jax.models.networks import count_params
from mnist_jax.records.environment import Environment, current_environment
from mnist_jax.records.files import check_append
from mnist_jax.records.schema import append_jsonl, read_jsonl
from mnist_jax.reporting.statistics import median_range, ratio_interval, spread
from mnist_jax.reporting.tables import group_by_table, markdown_table, provenance
from mnist_jax.training import distributed
from mnist_jax.training.fit import finish, fit
from mnist_jax.training.prepare import prepare

from .peers.frameworks import KEEP_MEMORY
from .processes import Worker
from .published.systems import read_flag_file
from .starts import measure_starts

FLAGS = flags.FLAGS
RECORDS = Path(__file__).parent / "results" / "speedrun.jsonl"
RECIPES = Path(__file__).parents[1] / "experiments" / "recipes"
# What a recipe must have besides one of these datasets: all training images.
RULES: dict[str, Any] = {"validation": "none", "train_size": None, "split": "official"}
SIGNIFICANCE = 0.01  # of the one-sided t-test
# The published PyTorch recipe of `torch_speedrun`, as installed and with malloc tuned.
PEERS = {"PyTorch": {}, "PyTorch + malloc": KEEP_MEMORY}


@dataclasses.dataclass(frozen=True)
class SpeedRun:
    """One seed of a recipe or a peer: its accuracy on the test set, and the seconds."""

    accuracy: float
    seconds: float  # of training
    tta_accuracy: float | None = None


@dataclasses.dataclass(frozen=True)
class SpeedRecord:
    """A recipe's runs, one seed after the other, counted from 0."""

    recipe: str
    target: float
    config: TrainConfig
    runs: list[SpeedRun]
    compile_seconds: float  # with an empty compilation cache
    cached_compile_seconds: float  # with a full one
    parameters: int
    environment: Environment
    peers: dict[str, list[SpeedRun]]  # that took turns with it

    def table_key(self) -> tuple[str | int, ...]:
        """Returns the values that must be equal within a table."""
        return self.environment.compared()

    def p_value(self, target: float) -> float:
        """Of the one-sided t-test that the mean accuracy is above a target."""
        accuracies = [run.accuracy for run in self.runs]
        test = stats.ttest_1samp(accuracies, target, alternative="greater")
        return float(test.pvalue)

    @property
    def median_seconds(self) -> float:
        """Median training seconds over the seeds."""
        return statistics.median(run.seconds for run in self.runs)


def read_recipe(path: Path) -> TrainConfig:
    """Returns the config of a recipe, a file of flags, if it follows the rules."""
    config = config_from_flags(read_flag_file(path))
    follows = config == dataclasses.replace(config, **RULES)
    if config.dataset not in NAMED_DATASETS or not follows:
        rules = " ".join(f"--{name}={as_text(value)}" for name, value in RULES.items())
        raise InputError(
            f"the recipe {path} must have {rules} and "
            f"--dataset={' or '.join(NAMED_DATASETS)}, by the rules in docs/records.md"
        )
    return config


def find_fastest(
    records: Iterable[SpeedRecord], target: float, dataset: str, model: str | None
) -> SpeedRecord | None:
    """Returns the fastest of the recipes whose latest record reached a target."""
    fits = [
        record
        for record in {record.recipe: record for record in records}.values()
        if record.p_value(target) < SIGNIFICANCE
        and record.config.dataset == dataset
        and model in (None, record.config.model)
    ]
    return min(fits, key=lambda record: record.median_seconds, default=None)


def run_recipes(
    paths: Sequence[Path],
    target: float,
    seeds: int,
    data_dir: str | None = None,
    peers: Mapping[str, Worker] = {},
) -> list[SpeedRecord]:
    """Trains recipes and peers, the seeds of all in turn, and measures their starts.

    If a loss becomes NaN, there is no record: no seed is dropped.
    """
    environment = current_environment()
    experiments = {}
    for path in paths:
        config = read_recipe(path)
        experiments[path.stem] = prepare(config, load_dataset(config.dataset, data_dir))
    runs: dict[str, list[SpeedRun]] = {name: [] for name in (*experiments, *peers)}
    for seed in range(seeds):
        for name, done in runs.items():
            if name in peers:
                run = SpeedRun(**peers[name].ask(seed))
            else:
                [(record, _)] = finish(fit(experiments[name], [seed]))
                seconds = sum(epoch.train_seconds for epoch in record.epochs)
                run = SpeedRun(record.test_accuracy, seconds, record.tta_accuracy)
            done.append(run)
            print(
                f"{name}, seed {seed}: test accuracy {run.accuracy:.4f} in "
                f"{run.seconds:.2f} s"
            )
    records: list[SpeedRecord] = []
    for name, experiment in experiments.items():
        empty_cache, full_cache = measure_starts(experiment.config, 1)
        shape = experiment.dataset.shapes.image
        records.append(
            SpeedRecord(
                recipe=name,
                target=target,
                config=experiment.config,
                runs=runs[name],
                compile_seconds=empty_cache["compile s"],
                cached_compile_seconds=full_cache["compile s"],
                parameters=count_params(experiment.model, shape),
                environment=environment,
                peers={} if records else {peer: runs[peer] for peer in peers},
            )
        )
    return records


def _accuracy(runs: Iterable[SpeedRun]) -> str:
    return spread([run.accuracy for run in runs])


def _seconds(runs: Iterable[SpeedRun]) -> str:
    return f"{median_range([run.seconds for run in runs]):.2f}"


def speed_frame(records: Iterable[SpeedRecord]) -> pd.DataFrame:
    """Returns one row per record, and after it one for each of its peers."""
    rows = []
    for record in records:
        config, seconds = record.config, record.median_seconds
        p = record.p_value(record.target)
        tta = [run.tta_accuracy for run in record.runs if run.tta_accuracy is not None]
        rows.append(
            {
                "data": config.dataset,
                "target": f"{record.target:g}",
                "network": config.name,
                "test accuracy": _accuracy(record.runs),
                "with TTA": spread(tta) if tta else "-",
                "reached": f"{'yes' if p < SIGNIFICANCE else 'no'} "
                f"(p {f'{p:.1g}' if p > 1e-9 else '< 1e-9'})",
                "training s": _seconds(record.runs),
                "with compiling": f"{seconds + record.compile_seconds:.1f}",
                "cached": f"{seconds + record.cached_compile_seconds:.1f}",
                "epochs": str(config.epochs),
                "parameters": f"{record.parameters:,}",
                "recipe": record.recipe,
            }
        )
        rows += [
            {
                "network": name,
                "test accuracy": _accuracy(runs),
                "training s": _seconds(runs),
            }
            for name, runs in record.peers.items()
        ]
    frame = pd.DataFrame(rows).fillna("-")
    return frame.drop(columns=["with TTA"] if all(frame["with TTA"] == "-") else [])


def format_speed(records: Iterable[SpeedRecord]) -> str:
    """Formats the latest record of each recipe and target, a table per machine."""

    def position(record: SpeedRecord) -> tuple[Any, ...]:
        model = record.config.model  # custom networks come last
        network = record.config.dataset, [*MODELS, model].index(model)
        return *network, record.target, record.recipe

    latest = {position(record): record for record in records}
    note = (
        f"reached: one-sided t-test of the mean over seeds, p < {SIGNIFICANCE:g}; "
        "training s: median [min, max] over seeds; with compiling: its seconds added, "
        "with an empty and with a full cache"
    )
    return "\n\n".join(
        markdown_table(speed_frame(rows), [*provenance(rows), note])
        for rows in group_by_table(latest[key] for key in sorted(latest))
    )


def format_fastest(records: Iterable[SpeedRecord]) -> str:
    """Formats the fastest CNN that reached each target on MNIST, for the README."""
    rows, network = [], ("mnist", "cnn")
    cnns = [r for r in records if (r.config.dataset, r.config.model) == network]
    for target in sorted({record.target for record in cnns}):
        if fastest := find_fastest(cnns, target, *network):
            rows.append(
                {
                    "MNIST, CNN": f"{100 * target:g} %",
                    "test accuracy": _accuracy(fastest.runs),
                    "training s": _seconds(fastest.runs),
                    "parameters": f"{fastest.parameters:,}",
                }
            )
    return markdown_table(pd.DataFrame(rows))


def main() -> None:
    """Trains the recipe, prints its table and records it."""
    out = Path(FLAGS.out) / "speedrun.jsonl"
    check_append(out)
    for flag in ("dataset", "model"):
        if FLAGS.recipe and FLAGS[flag].present:
            raise InputError(
                f"--{flag}={FLAGS[flag].value} chooses among the recorded recipes, but "
                f"--recipe={FLAGS.recipe} is given; leave one of them out"
            )
    name = FLAGS.recipe
    if not name:
        records = read_jsonl(SpeedRecord, RECORDS)
        best = find_fastest(records, FLAGS.target, FLAGS.dataset, FLAGS.model)
        if not best:
            raise InputError(
                f"no recorded recipe of {FLAGS.model or 'any network'} reaches "
                f"--target={FLAGS.target:g} on {FLAGS.dataset}; give another, or a "
                "--recipe to try"
            )
        name = best.recipe
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
        seconds = [[run.seconds for run in each.runs] for each in (second, first)]
        ratio = ratio_interval([seconds], 50)
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
    flags.DEFINE_enum("dataset", "mnist", NAMED_DATASETS, "dataset")
    flags.DEFINE_enum("model", None, list(MODELS), "network; default: any")
    flags.DEFINE_integer("seeds", 10, "seeds, counted from 0, one by one", 2)
    flags.DEFINE_boolean("peers", False, "train a PyTorch recipe for 99 % in turns too")
    define_machine_flags()
    define_cluster_flags()
    define_path_flag("out", "results", "folder of the speedrun.jsonl to append to")
    run_program(main)


if __name__ == "__main__":
    run()
