"""Peer records -> tables that compare this project with other frameworks."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from mnist_jax.reporting.statistics import ratio_interval, verdict
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


def lower_quartile(rounds: Rounds) -> float:
    """Returns the lower quartile of the seconds of all epochs after the first."""
    seconds = [time for run in rounds.values() for time in run.steady_seconds]
    return float(np.percentile(seconds, LOWER_QUARTILE))


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
    """Returns our speedups in each race over the fastest peers and a baseline.

    The peers are the fastest of all, and the fastest as installed if it is another one.
    The baseline is plain Flax, for bfloat16 this project in float32.
    """
    rows = []
    for race, frameworks in races.items():
        for ours, baseline in (("ours", "flax"), ("ours_bfloat16", "ours")):
            ranked = rank_peers(frameworks, ours)
            installed = [name for name in ranked if not FRAMEWORKS[name].environment]
            for peer in dict.fromkeys([*ranked[:1], *installed[:1], baseline]):
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
