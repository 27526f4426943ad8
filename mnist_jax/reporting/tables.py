"""Records -> comparison tables."""

import statistics
from collections.abc import Iterable, Sequence

import pandas as pd

from mnist_jax.config import MODELS, config_to_dict, default_config
from mnist_jax.records.schema import PLACE, Record, place

# What a record must have to be in a table.
NEEDED = (
    *("config.model", "config.seed", "dataset", "dataset_note", "checksum"),
    *("parameters", "kernels", "devices", "test_accuracy", "test_loss"),
    *("compile_seconds", "first_epoch_seconds", "steady_epoch_seconds"),
    *("train_images_per_second", "step_milliseconds"),
    *("evaluate_images_per_second", "total_seconds"),
    *(f"environment.{name}" for name in (*PLACE, "numpy", "xla_flags")),
    *("environment.commit", "environment.dirty"),
    *("environment.date", "environment.load"),
)

COLUMNS = (
    "model",
    "parameters",
    "devices",
    "test accuracy",
    "test loss",
    "compile s",
    "first epoch s",
    "steady s/epoch",
    "train images/s",
    "step ms",
    "evaluate images/s",
    "total s",
)


def _settings(record: Record) -> str:
    """Names what a run was told beyond its model's defaults, apart from the seed."""
    config = record["config"]
    if config["model"] not in MODELS:
        return ""
    default = config_to_dict(default_config(config["model"]))
    changes = {
        name: value
        for name, value in config.items()
        if name not in ("model", "seed", "dataset") and value != default.get(name)
    }
    shown = [
        f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in changes.items()
    ]
    return " ".join(shown)


def median_and_range(values: Sequence[float], digits: int = 0) -> str:
    """Writes the median and, in brackets, the range; "-" if there are no values.

    >>> median_and_range([1000.0, 3000.0, 2000.0])
    '2,000 [1,000, 3,000]'
    """
    if not values:
        return "-"
    median, low, high = (
        f"{value:,.{digits}f}"
        for value in (statistics.median(values), min(values), max(values))
    )
    return f"{median} [{low}, {high}]"


def mean_and_spread(values: Sequence[float]) -> str:
    """Writes mean ± standard deviation (n), or the value alone for one run.

    >>> mean_and_spread([0.97, 0.98])
    '0.9750 ± 0.0071 (n=2)'
    """
    series = pd.Series(values)
    spread = f" ± {series.std():.4f}" if len(series) > 1 else ""
    return f"{series.mean():.4f}{spread} (n={len(series)})"


def row_key(record: Record) -> tuple[str, str, str, int]:
    """Returns what runs of one row have in common: all but the seed."""
    model = record["config"]["model"]
    return model, _settings(record), record["kernels"], record["devices"]


def row_name(record: Record) -> str:
    """Names a row: its model, with the settings that are not the model's defaults."""
    return " ".join(filter(None, row_key(record)[:2]))


def group_by_row(records: Iterable[Record]) -> list[list[Record]]:
    """Parts records of one place by model and settings, best mean accuracy first.

    Of two runs with the same settings and seed the later one counts.
    """
    groups: dict[tuple[str, str, str, int], dict[int, Record]] = {}
    for record in records:
        seeds = groups.setdefault(row_key(record), {})
        seeds[record["config"]["seed"]] = record
    rows = [list(seeds.values()) for seeds in groups.values()]
    return sorted(
        rows, key=lambda runs: -statistics.fmean(run["test_accuracy"] for run in runs)
    )


def _compile_seconds(records: Sequence[Record]) -> str:
    """Writes the median seconds of compiling, of cached programs only if need be."""
    cold = [r["compile_seconds"] for r in records if not r.get("compile_cached")]
    if cold:
        return f"{statistics.median(cold):.2f}"
    cached = [r["compile_seconds"] for r in records]
    return f"{statistics.median(cached):.2f} (cached)"


def comparison_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Returns one row per model and settings, best mean test accuracy first.

    Args:
        records: run records of one place (see `format_markdown`); of two runs with the
            same settings and seed the later one counts.

    Returns:
        The columns `COLUMNS`, after `model` also `settings` if any run had some, after
        `devices` also `seeds together` if any were; accuracies are means over seeds,
        seconds are medians over seeds, of seeds trained together each one's share.
    """
    rows = []
    for group in group_by_row(records):
        model, settings, _, devices = row_key(group[0])
        runs = pd.DataFrame(group)
        together = {record.get("seeds_together", 1) for record in group}
        steady = runs["steady_epoch_seconds"].astype(float).median()
        rows.append(
            {
                "model": model,
                "settings": settings,
                "parameters": f"{runs['parameters'].iloc[0]:,}",
                "devices": devices,
                "seeds together": ", ".join(map(str, sorted(together))),
                "test accuracy": mean_and_spread(runs["test_accuracy"]),
                "test loss": f"{runs['test_loss'].mean():.4f}",
                "compile s": _compile_seconds(group),
                "first epoch s": f"{runs['first_epoch_seconds'].median():.2f}",
                "steady s/epoch": "-" if pd.isna(steady) else f"{steady:.2f}",
                "train images/s": f"{runs['train_images_per_second'].median():,.0f}",
                "step ms": f"{runs['step_milliseconds'].median():.2f}",
                "evaluate images/s": (
                    f"{runs['evaluate_images_per_second'].median():,.0f}"
                ),
                "total s": f"{runs['total_seconds'].median():.1f}",
            }
        )
    frame = pd.DataFrame(rows)
    same = {"settings": "", "seeds together": "1"}  # what then needs no column
    return frame.drop(columns=[name for name in same if all(frame[name] == same[name])])


def history_frame(record: Record) -> pd.DataFrame:
    """Returns one row per epoch of a run: losses, accuracies, seconds."""
    return pd.DataFrame(record["epochs"])


def budget_frame(record: Record) -> pd.DataFrame:
    """Returns a run's `seconds` of training and its `accuracy` after each epoch.

    Seconds leave compiling and evaluation out. The accuracy is that of the validation
    set; where there was none, a single row has the test accuracy at the end.
    """
    history = history_frame(record)
    seconds = history["train_seconds"].cumsum()
    if history["val_accuracy"].isna().any():
        values = {"seconds": seconds.iloc[-1:], "accuracy": record["test_accuracy"]}
        return pd.DataFrame(values)
    return pd.DataFrame({"seconds": seconds, "accuracy": history["val_accuracy"]})


def markdown_table(frame: pd.DataFrame) -> str:
    """Writes a frame as a Markdown table, padded to read as plain text too."""
    cells = [list(map(str, frame.columns)), *frame.astype(str).to_numpy().tolist()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def group_by_place(records: Iterable[Record]) -> list[list[Record]]:
    """Parts records by data set, machine and versions, in order of appearance."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(place(record), []).append(record)
    return list(groups.values())


def title(record: Record) -> str:
    """Names the data set and the machine; a stand-in for MNIST loudly."""
    machine = record["environment"]
    data = record["dataset"].upper()
    if record["dataset_note"]:
        data = f"{data}, NOT MNIST"
    return f"{data} on {machine['device']} ({machine['cores']} cores)"


def provenance_items(records: Sequence[Record]) -> list[str]:
    """Returns what the numbers of a table rest on, a sentence for each thing."""
    first, machine = records[0], records[0]["environment"]
    environments = [record["environment"] for record in records]
    commits = dict.fromkeys(
        f"{(e['commit'] or 'not a checkout')[:14]}"
        f"{' with uncommitted changes' if e['dirty'] else ''}"
        for e in environments
    )
    flags = dict.fromkeys(e["xla_flags"] or "none" for e in environments)
    dates = sorted(e["date"] for e in environments)
    loads = [e["load"] for e in environments]
    versions = ", ".join(
        f"{name} {machine[name]}"
        for name in ("python", "jax", "jaxlib", "flax", "optax", "numpy")
    )
    return [
        f"data: {first['dataset']}, sha256 {first['checksum']}",
        f"device: {machine['device']} ({machine['platform']}), "
        f"{machine['cores']} cores",
        f"versions: {versions}; XLA_FLAGS: {', '.join(flags)}",
        f"commit: {', '.join(commits)}",
        f"date: {dates[0]} to {dates[-1]}; load average at start "
        f"{min(loads)} to {max(loads)}",
        "accuracy: mean ± standard deviation over seeds; times: medians over seeds; "
        "a steady epoch is any after the first; compiling is in none of them",
    ]


def provenance(records: Sequence[Record]) -> str:
    """Writes what the numbers of a table rest on, below it."""
    note = records[0]["dataset_note"]
    items = [f"**{note}**"] if note else []
    return "\n".join(f"- {item}" for item in [*items, *provenance_items(records)])


def format_markdown(records: Iterable[Record]) -> str:
    """Writes a title, table and provenance for each place that records come from."""
    return "\n\n".join(
        f"**{title(group[0])}**\n\n{markdown_table(comparison_frame(group))}\n\n"
        f"{provenance(group)}"
        for group in group_by_place(records)
    )
