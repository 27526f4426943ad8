"""Peer records -> tables that compare this project with other frameworks."""

import statistics
from collections.abc import Iterable, Sequence

import pandas as pd

from mnist_jax.config import MODELS
from mnist_jax.models.flops import training_flops
from mnist_jax.reporting.tables import (
    format_commit,
    markdown_table,
    mean_and_spread,
    median_and_range,
)

from .frameworks import FRAMEWORKS, OURS, PEAK, PeerRecord
from .worker import Job, peer_config

ByFramework = dict[str, list[PeerRecord]]


def group(records: Iterable[PeerRecord]) -> dict[tuple[str, int], ByFramework]:
    """Groups the valid measurements by (model, batch size), then by framework."""
    groups: dict[tuple[str, int], ByFramework] = {}
    for record in records:
        if record.framework in FRAMEWORKS and record.is_valid:
            by_framework = groups.setdefault((record.model, record.batch_size), {})
            by_framework.setdefault(record.framework, []).append(record)
    return groups


def best_peer(by_framework: ByFramework, as_installed: bool = False) -> str | None:
    """Returns the PyTorch or Keras row with the lowest median, None if there is none.

    Args:
        by_framework: valid measurements of one model and batch size.
        as_installed: exclude rows that set environment variables.
    """
    medians = {
        name: statistics.median(record.epoch_seconds for record in records)
        for name, records in by_framework.items()
        if FRAMEWORKS[name].is_peer
        and not (as_installed and FRAMEWORKS[name].environment)
    }
    return min(medians, key=lambda name: medians[name], default=None)


def ratios(by_framework: ByFramework, peer: str) -> list[float]:
    """Returns the peer's seconds divided by ours for each round that has both."""
    ours, theirs = (
        {record.round: record.epoch_seconds for record in by_framework.get(name, [])}
        for name in (OURS, peer)
    )
    return [theirs[number] / ours[number] for number in sorted(ours.keys() & theirs)]


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
    """Returns one row per model and batch size: our speedup over the fastest peer."""
    rows = []
    for (model, batch_size), by_framework in group(records).items():
        peer = best_peer(by_framework)
        if peer is None or not (values := ratios(by_framework, peer)):
            continue
        installed = best_peer(by_framework, as_installed=True)
        rows.append(
            {
                "model": model,
                "batch": batch_size,
                "fastest peer": FRAMEWORKS[peer].label,
                "speedup": spread(values),
                "as installed": FRAMEWORKS[installed].label if installed else "-",
                "speedup as installed": spread(
                    ratios(by_framework, installed) if installed else []
                ),
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
        flops = training_flops(peer_config(Job(model, batch_size, 1)))
        for name, runs in by_framework.items():
            seconds = [run.epoch_seconds for run in runs]
            results = [run.result for run in runs]
            images_per_second = runs[0].run.train_images / statistics.median(seconds)
            utilization = flops * images_per_second / (peak * 1e9) if peak else None
            order = (MODELS.index(model), -batch_size, -images_per_second, name)
            rows[order] = {
                "model": model,
                "batch": batch_size,
                "framework": FRAMEWORKS[name].label,
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
    timed = [r for r in records if r.is_valid and r.framework in FRAMEWORKS]
    disturbed = sum(record.disturbed for record in records)
    if not timed:
        return f"nothing was measured ({disturbed} measurements were disturbed)"
    run, frame = timed[0].run, ratio_frame(timed)
    blocks = [
        f"**{run.dataset.upper()} on {run.device} ({run.cores} cores)**",
        markdown_table(frame) if len(frame) else "no pair to compare",
    ]
    notes = [
        "speedup: the peer's seconds per epoch divided by ours in the same round, "
        "median [min, max]; n: rounds in which both were measured",
        "PyTorch + malloc: glibc keeps freed memory, and the CNN is channels_last; as "
        "installed: the fastest peer without that row; plain Flax is a baseline, not a "
        "peer",
        f"{run.train_images:,} training images, float32, Adam with learning rate 1e-3, "
        f"{run.cores} threads per program; images are shuffled each epoch, and the "
        "last, smaller batch is used",
    ]
    if with_times:
        blocks.append(markdown_table(time_frame(records).drop(columns="settings")))
        notes += _time_notes(timed, peak_gflops(records))
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


def _time_notes(timed: Sequence[PeerRecord], peak: float | None) -> list[str]:
    """Returns notes on the columns of the times and on their provenance."""
    run = timed[0].run
    epochs = {record.model: record.run.steady_epochs for record in timed}
    counts = ", ".join(f"{model} {count}" for model, count in epochs.items())
    loads = [record.load for record in timed]
    others = [record.others_cores for record in timed]
    return [
        "measurements run one at a time, each in a separate process; a round runs each "
        "of them once",
        "s/epoch: median [min, max] over rounds of each process's median steady epoch; "
        f"steady epochs are those after the first ({counts})",
        "first epoch s: includes all compilation; n: rounds measured",
        "test accuracy: after the last epoch, mean ± standard deviation over rounds; "
        "the seed is the round number",
        "% of peak: FLOP/s, by the formulas of mnist_jax/models/flops.py, relative to "
        "the matmul peak of the best "
        f"round, {f'{peak:,.0f} GFLOP/s' if peak else 'not measured'}; Winograd "
        "convolutions execute fewer FLOPs, so they can exceed 100 %",
        f"data: {run.dataset}, sha256 {run.checksum}",
        f"versions: {', '.join(f'{k} {v}' for k, v in run.versions.items())}",
        f"commit: {', '.join({format_commit(r.environment): None for r in timed})}; "
        f"code {run.code}",
        f"load average before a measurement: {min(loads)} to {max(loads)}; cores used "
        f"by other programs during it: {min(others):.2f} to {max(others):.2f}, "
        f"median {statistics.median(others):.2f}",
    ]
