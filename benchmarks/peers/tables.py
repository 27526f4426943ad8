"""Peer records -> tables that compare this project with other frameworks."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from mnist_jax.config import MODELS
from mnist_jax.data.types import MNIST
from mnist_jax.models.flops import training_flops
from mnist_jax.reporting.statistics import (
    median_range,
    ratio_interval,
    spread,
    verdict,
)
from mnist_jax.reporting.tables import bullets, markdown_table, provenance

from .frameworks import FRAMEWORKS, OURS, PEAK, PeerRecord
from .worker import EXAMPLES, Job

ByFramework = dict[str, list[PeerRecord]]
LOWER_QUARTILE, MEDIAN = 25, 50


def latest_machine(records: Sequence[PeerRecord]) -> list[PeerRecord]:
    """Returns the records of the machine, versions and code of the latest one."""
    last = max(records, key=lambda record: record.date).run
    key = last.device, last.versions, last.code
    return [r for r in records if (r.run.device, r.run.versions, r.run.code) == key]


def group(records: Iterable[PeerRecord]) -> dict[tuple[str, int], ByFramework]:
    """Groups the successful measurements by (model, batch size), then by framework.

    Of repeated measurements of a round, the last one counts.
    """
    latest = {(r.round, r.cell): r for r in records if r.result}
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
    by_framework: ByFramework, precision: str = "float32", as_installed: bool = False
) -> str | None:
    """Returns the peer with the lowest lower quartile of its epochs, if there is one.

    Args:
        by_framework: measurements of one model and batch size.
        precision: of the rows.
        as_installed: exclude rows that set environment variables.
    """
    rows = {name: FRAMEWORKS[name] for name in by_framework}
    quartiles = {
        name: np.percentile(steady_seconds(by_framework[name]), LOWER_QUARTILE)
        for name, row in rows.items()
        if row.is_peer and row.precision == precision
        if not (as_installed and row.environment)
    }
    return min(quartiles, key=lambda name: quartiles[name], default=None)


def paired(
    by_framework: ByFramework, peer: str, ours: str = "ours"
) -> list[tuple[list[float], list[float]]]:
    """Returns the epochs of a peer's row and of ours, of each round that has both."""
    theirs, own = (
        {run.round: steady_seconds([run]) for run in by_framework.get(name, [])}
        for name in (peer, ours)
    )
    return [(theirs[n], own[n]) for n in sorted(theirs.keys() & own.keys())]


def ratio_frame(records: Iterable[PeerRecord]) -> pd.DataFrame:
    """Returns our speedups by model and batch size over the fastest peers.

    Those are the fastest of all, and the fastest as installed if it is another one; for
    bfloat16 also this project in float32, for custom networks plain Flax.
    """
    rows = []
    for (model, batch_size), by_framework in group(records).items():
        for precision, ours in OURS.items():
            fastest = best_peer(by_framework, precision)
            peers = {best_peer(by_framework, precision, True): ", as installed"}
            peers[fastest] = ""
            if precision != "float32":
                peers["ours"] = ""
            elif model not in MODELS:
                peers["flax"] = ""
            for peer in dict.fromkeys((fastest, *peers)):
                if peer is None or not (pairs := paired(by_framework, peer, ours)):
                    continue
                ratio = ratio_interval(pairs, LOWER_QUARTILE)
                rows.append(
                    {
                        "model": model,
                        "batch": batch_size,
                        "ours": precision,
                        "peer": FRAMEWORKS[peer].label + peers[peer],
                        "speedup": f"{ratio:.2f}",
                        "medians": f"{ratio_interval(pairs, MEDIAN).mean:.2f}",
                        "n": sum(len(theirs) for theirs, _ in pairs),
                        "verdict": verdict(ratio, 1, "faster", "slower"),
                    }
                )
    return pd.DataFrame(rows)


def peak_gflops(records: Iterable[PeerRecord]) -> float | None:
    """Returns the matmul peak, the best of libraries and rounds; None if unmeasured."""
    peaks = [
        max(record.result.values())
        for record in records
        if record.cell == PEAK and record.result
    ]
    return max(peaks, default=None)


def time_frame(records: Sequence[PeerRecord]) -> pd.DataFrame:
    """Returns one row per model, batch size and framework, fastest first."""
    peak, rows, order = peak_gflops(records), {}, [*MODELS, *EXAMPLES]
    for (model, batch_size), by_framework in group(records).items():
        flops = training_flops(Job(model, batch_size).config, MNIST)
        for name, runs in by_framework.items():
            results, seconds = [run.result for run in runs], steady_seconds(runs)
            fast = float(np.percentile(seconds, LOWER_QUARTILE))
            images_per_second = runs[0].run.train_images / fast
            utilization = flops * images_per_second / (peak * 1e9) if peak else None
            first = [result["epoch_seconds"][0] for result in results]
            position = order.index(model) if model in order else len(order)
            rows[position, model, -batch_size, -images_per_second, name] = {
                "model": model,
                "batch": batch_size,
                "framework": FRAMEWORKS[name].label,
                "s/epoch, lower quartile": f"{fast:.3f}",
                "s/epoch": f"{median_range(seconds):,.3f} (n={len(seconds)})",
                "images/s": f"{images_per_second:,.0f}",
                "% of peak": f"{100 * utilization:.1f}" if utilization else "-",
                "first epoch s": f"{median_range(first):,.2f}",
                "test accuracy": spread([r["test_accuracy"] for r in results]),
                "peak MB": f"{max(r['peak_rss_mb'] for r in results):,}",
                "parameters": f"{results[0]['parameters']:,}",
            }
    return pd.DataFrame([rows[key] for key in sorted(rows)])


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
TIME_NOTES = (
    "s/epoch: median [min, max] of all epochs after the first (n); first epoch s: "
    "includes all compilation; test accuracy: over rounds, whose numbers are the seeds",
    "% of peak: FLOP/s, counted by mnist_jax/models/flops.py, relative to the float32 "
    "matmul peak of the best round; Winograd convolutions execute fewer, so they can "
    "exceed 100 %",
)


def format_ratios(records: Sequence[PeerRecord]) -> str:
    """Formats the speedups on the latest machine and how they were measured."""
    timed = [r for r in latest_machine(records) if r.result and r.cell != PEAK]
    if not timed:
        return "nothing was measured"
    run, frame = timed[0].run, ratio_frame(timed)
    epochs = {r.model: (r.run.train_images, r.run.steady_epochs) for r in timed}
    counts = ", ".join(
        f"{model} {count} of {images:,} images"
        for model, (images, count) in epochs.items()
    )
    versions = ", ".join(f"{name} {text}" for name, text in run.versions.items())
    notes = [
        f"rounds: {max(r.round for r in timed)}; epochs after the first in each: "
        f"{counts}; {run.cores} threads per program",
        f"data: {run.dataset}, sha256 {run.checksum}; packages: {versions}",
        *provenance(timed),
        *RATIO_NOTES,
    ]
    title = f"**{run.dataset.upper()} on {run.device} ({run.cores} cores)**"
    table = markdown_table(frame) if len(frame) else "no pair to compare"
    return f"{title}\n\n{table}\n\n{bullets(notes)}"


def format_tables(records: Sequence[PeerRecord]) -> str:
    """Formats the speedups and the times on the latest machine as Markdown."""
    ratios, records = format_ratios(records), latest_machine(records)
    if not group(records):
        return ratios
    peak = peak_gflops(records)
    measured = f"{peak:,.0f} GFLOP/s" if peak else "not measured"
    notes = [f"matmul peak: {measured}", *TIME_NOTES]
    return f"{ratios}\n\n{markdown_table(time_frame(records), notes)}"
