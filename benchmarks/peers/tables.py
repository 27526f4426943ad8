"""Peer records -> tables that compare this project with other frameworks."""

import statistics
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from mnist_jax.config import MODELS
from mnist_jax.data.types import MNIST
from mnist_jax.models.flops import training_flops
from mnist_jax.reporting.intervals import Interval
from mnist_jax.reporting.tables import (
    format_commit,
    markdown_table,
    mean_and_spread,
    median_and_range,
)

from ..statistics import percentile_ratio, ratio_interval
from .frameworks import FRAMEWORKS, OURS, PEAK, PeerRecord
from .worker import EXAMPLES, Job, peer_config

ByFramework = dict[str, list[PeerRecord]]
LOWER_QUARTILE, MEDIAN = 25, 50


def by_machine(records: Iterable[PeerRecord]) -> list[list[PeerRecord]]:
    """Groups records by machine and versions, latest first; without outdated code."""
    machines: dict[tuple[str, str], list[PeerRecord]] = {}
    for record in records:
        key = record.run.device, str(record.run.versions)
        machines.setdefault(key, []).append(record)
    latest = [
        [record for record in found if record.run.code == found[-1].run.code]
        for found in machines.values()
    ]
    return sorted(latest, key=lambda found: found[-1].date, reverse=True)


def group(records: Iterable[PeerRecord]) -> dict[tuple[str, int], ByFramework]:
    """Groups the valid measurements by (model, batch size), then by framework.

    Of repeated measurements of a round, the last one counts.
    """
    latest = {(r.round, r.cell): r for r in records if r.is_valid}
    groups: dict[tuple[str, int], ByFramework] = {}
    for record in latest.values():
        if record.framework in FRAMEWORKS:
            by_framework = groups.setdefault((record.model, record.batch_size), {})
            by_framework.setdefault(record.framework, []).append(record)
    return groups


def steady_seconds(runs: Iterable[PeerRecord]) -> list[float]:
    """Returns the seconds of all epochs after the first of each run."""
    return [seconds for run in runs for seconds in run.result["epoch_seconds"][1:]]


def best_peer(
    by_framework: ByFramework,
    as_installed: bool = False,
    precision: str = "float32",
) -> str | None:
    """Returns the PyTorch or Keras row with the lowest lower quartile of its epochs.

    Args:
        by_framework: valid measurements of one model and batch size.
        as_installed: exclude rows that set environment variables.
        precision: of the rows.

    Returns:
        Its name; None if there is none.
    """
    quartiles = {
        name: np.percentile(steady_seconds(runs), LOWER_QUARTILE)
        for name, runs in by_framework.items()
        if FRAMEWORKS[name].is_peer
        and FRAMEWORKS[name].precision == precision
        and not (as_installed and FRAMEWORKS[name].environment)
    }
    return min(quartiles, key=lambda name: quartiles[name], default=None)


def paired(
    by_framework: ByFramework, peer: str, ours: str = "ours"
) -> list[tuple[list[float], list[float]]]:
    """Returns a peer's epochs and ours, of each round that has both.

    Args:
        by_framework: valid measurements of one model and batch size.
        peer: name of its row.
        ours: name of our row.
    """
    theirs, own = (
        {run.round: steady_seconds([run]) for run in by_framework.get(name, [])}
        for name in (peer, ours)
    )
    return [(theirs[n], own[n]) for n in sorted(theirs.keys() & own.keys())]


def verdict(ratio: Interval) -> str:
    """Returns what the interval of a speedup allows to say.

    >>> verdict(Interval(1.2, 1.1, 1.3)), verdict(Interval(1.2, 0.9, 1.5))
    ('faster', 'undecided')
    """
    if ratio.low > 1:
        return "faster"
    return "slower" if ratio.high < 1 else "undecided"


def spread(values: Sequence[float]) -> str:
    """Formats median, range and n, with three decimals below 1 and two otherwise.

    >>> spread([1.0, 3.0, 2.0])
    '2.00 [1.00, 3.00] (n=3)'
    >>> spread([])
    '-'
    """
    if not values:
        return "-"
    digits = 3 if statistics.median(values) < 1 else 2
    return f"{median_and_range(values, digits)} (n={len(values)})"


def ratio_frame(records: Iterable[PeerRecord]) -> pd.DataFrame:
    """Returns our speedups by model and batch size over the fastest peers.

    Those are the fastest of all, and the fastest as installed if it is another one; for
    bfloat16 also this project in float32.
    """
    rows = []
    for (model, batch_size), by_framework in group(records).items():
        for precision, ours in OURS.items():
            fastest = best_peer(by_framework, precision=precision)
            installed = best_peer(by_framework, True, precision)
            own = "ours" if precision != "float32" else None
            if precision == "float32" and model in EXAMPLES:
                own = "flax"
            for peer in dict.fromkeys(filter(None, (fastest, installed, own))):
                pairs = paired(by_framework, peer, ours)
                if not pairs:
                    continue
                ratio = ratio_interval(pairs, LOWER_QUARTILE)
                label = FRAMEWORKS[peer].label
                if peer not in (fastest, own):
                    label += ", as installed"
                rows.append(
                    {
                        "model": model,
                        "batch": batch_size,
                        "ours": precision,
                        "peer": label,
                        "speedup": f"{ratio.mean:.2f} [{ratio.low:.2f}, "
                        f"{ratio.high:.2f}]",
                        "medians": f"{percentile_ratio(pairs, MEDIAN):.2f}",
                        "n": sum(len(theirs) for theirs, _ in pairs),
                        "verdict": verdict(ratio),
                    }
                )
    return pd.DataFrame(rows)


def peak_gflops(records: Iterable[PeerRecord]) -> float | None:
    """Returns the matmul peak, the best of libraries and rounds; None if unmeasured."""
    peaks = [
        max(record.result.values())
        for record in records
        if record.framework == PEAK and record.is_valid
    ]
    return max(peaks, default=None)


def time_frame(records: Sequence[PeerRecord]) -> pd.DataFrame:
    """Returns one row per model, batch size and framework, fastest first."""
    peak = peak_gflops(records)
    rows = {}
    for (model, batch_size), by_framework in group(records).items():
        flops = training_flops(peer_config(Job(model, batch_size, 1)), MNIST)
        for name, runs in by_framework.items():
            results, seconds = [run.result for run in runs], steady_seconds(runs)
            fast = float(np.percentile(seconds, LOWER_QUARTILE))
            images_per_second = runs[0].run.train_images / fast
            utilization = flops * images_per_second / (peak * 1e9) if peak else None
            order = (
                [*MODELS, *EXAMPLES].index(model),
                -batch_size,
                -images_per_second,
                name,
            )
            rows[order] = {
                "model": model,
                "batch": batch_size,
                "framework": FRAMEWORKS[name].label,
                "s/epoch, lower quartile": f"{fast:.3f}",
                "s/epoch": spread(seconds),
                "images/s": f"{images_per_second:,.0f}",
                "% of peak": f"{100 * utilization:.1f}" if utilization else "-",
                "first epoch s": spread([r["epoch_seconds"][0] for r in results]),
                "test accuracy": mean_and_spread([r["test_accuracy"] for r in results]),
                "peak MB": f"{max(r['peak_rss_mb'] for r in results):,}",
                "parameters": f"{results[0]['parameters']:,}",
                "settings": results[0]["form"],
            }
    return pd.DataFrame([rows[order] for order in sorted(rows)])


def format_ratios(records: Sequence[PeerRecord]) -> str:
    """Formats the speedups and how they were measured as Markdown."""
    return _format(records, with_times=False)


def format_tables(records: Sequence[PeerRecord]) -> str:
    """Formats the speedups, the times and the full provenance as Markdown."""
    return _format(records, with_times=True)


def _format(records: Sequence[PeerRecord], with_times: bool) -> str:
    blocks = [_format_machine(found, with_times) for found in by_machine(records)]
    notes = [
        "speedup: lower quartile of the peer's seconds per epoch, divided by that of "
        "ours, with its 95 % bootstrap interval over rounds and pairs of epochs; "
        "medians: the same of medians; n: epochs of each; a verdict needs an interval "
        "without 1",
        "PyTorch + malloc: glibc keeps freed memory, and the CNN is channels_last; as "
        "installed: the fastest peer without that row; plain Flax is a baseline, not a "
        "peer; PyTorch's bfloat16 is its autocast",
        "Adam with learning rate 1e-3; images are shuffled each epoch, and the last, "
        "smaller batch is used",
    ]
    if with_times:
        notes += [
            "s/epoch: median [min, max] of all epochs after the first (n)",
            "first epoch s: includes all compilation; n: rounds",
            "test accuracy: after the last epoch, mean ± standard deviation over "
            "rounds; the seed is the round number",
            "% of peak: FLOP/s, counted by mnist_jax/models/flops.py, relative "
            "to the float32 matmul peak of the best round; Winograd convolutions "
            "execute fewer FLOPs, so they can exceed 100 %",
        ]
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in notes)])


def _format_machine(records: Sequence[PeerRecord], with_times: bool) -> str:
    """Formats the measurements of one machine with one set of versions."""
    timed = [r for r in records if r.is_valid and r.framework in FRAMEWORKS]
    disturbed = sum(record.disturbed for record in records)
    if not timed:
        return f"nothing was measured ({disturbed} measurements were disturbed)"
    run, frame = timed[0].run, ratio_frame(timed)
    versions = run.versions
    blocks = [
        f"**{run.dataset.upper()} on {run.device} ({run.cores} cores), Python "
        f"{versions.get('python', '-')}, jax {versions.get('jax', '-')}**",
        markdown_table(frame) if len(frame) else "no pair to compare",
    ]
    epochs = {r.model: (r.run.train_images, r.run.steady_epochs) for r in timed}
    counts = ", ".join(
        f"{model} {count} of {images:,} images"
        for model, (images, count) in epochs.items()
    )
    notes = [
        f"rounds: {max(r.round for r in timed)}; epochs after the first in each: "
        f"{counts}; {run.cores} threads per program",
    ]
    if with_times:
        blocks.append(markdown_table(time_frame(records).drop(columns="settings")))
        notes += _provenance(timed, peak_gflops(records))
        notes.append(f"{disturbed} measurements disturbed by other programs excluded")
    dates = sorted(record.date for record in timed)
    notes.append(f"date: {dates[0]} to {dates[-1]}")
    # Failures of measurements that succeeded when repeated are not listed.
    done = {(record.round, record.cell) for record in timed}
    notes += dict.fromkeys(
        f"**failed**: {' '.join(map(str, record.cell))}: {record.error}"
        for record in records
        if record.error is not None and (record.round, record.cell) not in done
    )
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in notes)])


def _provenance(timed: Sequence[PeerRecord], peak: float | None) -> list[str]:
    """Returns notes on the machine, the versions and its load."""
    run = timed[0].run
    loads = [record.load for record in timed]
    others = [record.others_cores for record in timed]
    return [
        f"matmul peak: {f'{peak:,.0f} GFLOP/s' if peak else 'not measured'}",
        f"data: {run.dataset}, sha256 {run.checksum}",
        f"versions: {', '.join(f'{k} {v}' for k, v in run.versions.items())}",
        f"commit: {', '.join({format_commit(r.environment): None for r in timed})}; "
        f"code {run.code}",
        f"load average before a round: {min(loads)} to {max(loads)}; cores used "
        f"by other programs during it: {min(others):.2f} to {max(others):.2f}, "
        f"median {statistics.median(others):.2f}",
    ]
