"""Peer records -> tables that compare this project with other frameworks."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from mnist_jax.config import MODELS
from mnist_jax.reporting.statistics import median_range, ratio_interval, spread, verdict
from mnist_jax.reporting.tables import latest_table, markdown_table, provenance

from .frameworks import FRAMEWORKS, PACKAGES, PeerRecord, Race

Rounds = dict[int, PeerRecord]  # of a framework, by number
Races = Mapping[Race, dict[str, Rounds]]  # by framework
LOWER_QUARTILE, MEDIAN = 25, 50


def group(records: Iterable[PeerRecord]) -> Races:
    """Groups measurements; of those of a framework in one round, the last counts."""
    races: dict[Race, dict[str, Rounds]] = {}
    for record in records:
        rounds = races.setdefault(record.race, {}).setdefault(record.framework, {})
        rounds[record.round] = record
    return races


def steady_seconds(rounds: Rounds) -> list[float]:
    """Returns the seconds of all epochs after the first of each round."""
    return [seconds for run in rounds.values() for seconds in run.steady_seconds]


def lower_quartile(rounds: Rounds) -> float:
    """Returns the lower quartile of `steady_seconds`."""
    return float(np.percentile(steady_seconds(rounds), LOWER_QUARTILE))


def rank_peers(frameworks: Mapping[str, Rounds], ours: str = "ours") -> list[str]:
    """Returns the peers of a race that have the precision of ours, fastest first."""
    half = "bfloat16" in ours
    peers = [
        name
        for name in frameworks
        if FRAMEWORKS[name].worker in PACKAGES and ("bfloat16" in name) == half
    ]
    return sorted(peers, key=lambda name: lower_quartile(frameworks[name]))


def paired(
    frameworks: Mapping[str, Rounds], peer: str, ours: str = "ours"
) -> list[tuple[list[float], list[float]]]:
    """Returns the epochs of a peer's row and of ours, of each round that has both."""
    theirs, own = (frameworks.get(name, {}) for name in (peer, ours))
    return [
        (theirs[number].steady_seconds, own[number].steady_seconds)
        for number in sorted(theirs.keys() & own.keys())
    ]


def format_speedup(frameworks: Mapping[str, Rounds], peer: str) -> str:
    """Formats our speedup over a row of a race, and its interval."""
    return f"{ratio_interval(paired(frameworks, peer), LOWER_QUARTILE):.1f}"


def speedup_over_best(frameworks: Mapping[str, Rounds]) -> str:
    """Formats our speedup over the fastest peer of a race, and that peer's name."""
    peer = rank_peers(frameworks)[0]
    return f"{format_speedup(frameworks, peer)} ({FRAMEWORKS[peer].label})"


def ratio_frame(races: Races) -> pd.DataFrame:
    """Returns our speedups in each race over the fastest peers.

    Those are the fastest of all, and the fastest as installed if it is another one; for
    bfloat16 also this project in float32, for custom networks plain Flax.
    """
    rows = []
    for race, frameworks in races.items():
        for ours in ("ours", "ours_bfloat16"):
            ranked = rank_peers(frameworks, ours)
            installed = [name for name in ranked if not FRAMEWORKS[name].environment]
            peers = [*ranked[:1], *installed[:1]]
            if ours == "ours_bfloat16":
                peers.append("ours")
            elif race.model not in MODELS:
                peers.append("flax")
            for peer in dict.fromkeys(peers):
                if not (pairs := paired(frameworks, peer, ours)):
                    continue
                note = ", as installed" if peer in ranked[1:] else ""
                ratio = ratio_interval(pairs, LOWER_QUARTILE)
                rows.append(
                    {
                        "model": race.model,
                        "batch": race.batch_size,
                        "ours": FRAMEWORKS[ours].variant,
                        "peer": FRAMEWORKS[peer].label + note,
                        "speedup": f"{ratio:.2f}",
                        "medians": f"{ratio_interval(pairs, MEDIAN).mean:.2f}",
                        "n": sum(len(theirs) for theirs, _ in pairs),
                        "verdict": verdict(ratio, 1, "faster", "slower"),
                    }
                )
    return pd.DataFrame(rows)


RATIO_NOTES = (
    "speedup: lower quartile of the peer's seconds per epoch, divided by that of ours, "
    "with its 95 % bootstrap interval over rounds and pairs of epochs; medians: the "
    "same of medians; n: epochs of each; a verdict needs an interval without 1",
    "PyTorch + malloc: glibc keeps freed memory, and convolutions are channels_last; "
    "as installed: the fastest peer without that row; plain Flax is a baseline, not a "
    "peer; PyTorch's bfloat16 is its autocast",
    "Adam with learning rate 1e-3; images are shuffled each epoch, and the last, "
    "smaller batch is used",
)
TIME_NOTE = (
    "s/epoch: median [min, max] of all epochs after the first (n); first epoch s: "
    "includes all compilation; test accuracy: over rounds, whose numbers are the seeds"
)


def format_ratios(records: Sequence[PeerRecord]) -> str:
    """Formats the speedups on the latest machine and how they were measured."""
    latest = latest_table(records)
    races, race, machine = group(latest), latest[0].race, latest[0].environment
    epochs = {
        race.model: f"{race.model} {race.steady_epochs} of {race.train_images:,} images"
        for race in races
    }
    notes = [
        f"rounds: {max(record.round for record in latest)}; epochs after the first in "
        f"each: {', '.join(epochs.values())}; {machine.cores} threads per program",
        f"data: {race.dataset}, sha256 {race.checksum}; packages: {race.packages}",
        *provenance(latest),
        *RATIO_NOTES,
    ]
    title = f"**{race.dataset.upper()} on {machine.device} ({machine.cores} cores)**"
    return f"{title}\n\n{markdown_table(ratio_frame(races), notes)}"


def format_times(records: Sequence[PeerRecord]) -> str:
    """Formats the times on the latest machine, in a race the fastest first."""
    rows = []
    for race, frameworks in group(latest_table(records)).items():
        fastest_first = sorted((lower_quartile(frameworks[n]), n) for n in frameworks)
        for fast, name in fastest_first:
            seconds = steady_seconds(frameworks[name])
            results = [run.result for run in frameworks[name].values()]
            first = [result.epoch_seconds[0] for result in results]
            rows.append(
                {
                    "model": race.model,
                    "batch": race.batch_size,
                    "framework": FRAMEWORKS[name].label,
                    "s/epoch, lower quartile": f"{fast:.3f}",
                    "s/epoch": f"{median_range(seconds):,.3f} (n={len(seconds)})",
                    "images/s": f"{race.train_images / fast:,.0f}",
                    "first epoch s": f"{median_range(first):,.2f}",
                    "test accuracy": spread([one.test_accuracy for one in results]),
                    "peak MB": f"{max(one.peak_rss_mb for one in results):,}",
                    "parameters": f"{results[0].parameters:,}",
                }
            )
    return markdown_table(pd.DataFrame(rows), [TIME_NOTE])
