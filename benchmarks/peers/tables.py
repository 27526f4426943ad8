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
from .worker import EXAMPLES, Job, peer_config

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
    by_framework: ByFramework,
    as_installed: bool = False,
    precision: str = "float32",
) -> str | None:
    """Returns the PyTorch or Keras row with the lowest lower quartile of its epochs.

    Args:
        by_framework: measurements of one model and batch size.
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
        by_framework: measurements of one model and batch size.
        peer: name of its row.
        ours: name of our row.
    """
    theirs, own = (
        {run.round: steady_seconds([run]) for run in by_framework.get(name, [])}
        for name in (peer, ours)
    )
    return [(theirs[n], own[n]) for n in sorted(theirs.keys() & own.keys())]


def ratio_frame(records: Iterable[PeerRecord]) -> pd.DataFrame:
    """Returns our speedups by model and batch size over the fastest peers.

    Those are the fastest of all, and the fastest as installed if it is another one; for
    bfloat16 also this project in float32, for the networks of `examples/` plain Flax.
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
                note = "" if peer in (fastest, own) else ", as installed"
                rows.append(
                    {
                        "model": model,
                        "batch": batch_size,
                        "ours": precision,
                        "peer": FRAMEWORKS[peer].label + note,
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
        if record.framework == PEAK and record.result
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
            first = [result["epoch_seconds"][0] for result in results]
            position = [*MODELS, *EXAMPLES].index(model)
            rows[position, -batch_size, -images_per_second, name] = {
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
                "settings": results[0]["form"],
            }
    return pd.DataFrame([rows[order] for order in sorted(rows)])


RATIO_NOTES = (
    "speedup: lower quartile of the peer's seconds per epoch, divided by that of ours, "
    "with its 95 % bootstrap interval over rounds and pairs of epochs; medians: the "
    "same of medians; n: epochs of each; a verdict needs an interval without 1",
    "PyTorch + malloc: glibc keeps freed memory, and the CNN is channels_last; as "
    "installed: the fastest peer without that row; plain Flax is a baseline, not a "
    "peer; PyTorch's bfloat16 is its autocast",
    "Adam with learning rate 1e-3; images are shuffled each epoch, and the last, "
    "smaller batch is used",
)
TIME_NOTES = (
    "s/epoch: median [min, max] of all epochs after the first (n)",
    "first epoch s: includes all compilation; median [min, max] of the rounds",
    "test accuracy: after the last epoch, mean ± standard deviation over rounds; the "
    "seed is the round number",
    "% of peak: FLOP/s, counted by mnist_jax/models/flops.py, relative to the "
    "float32 matmul peak of the best round; Winograd convolutions execute fewer FLOPs, "
    "so they can exceed 100 %",
)


def format_ratios(records: Sequence[PeerRecord]) -> str:
    """Formats the speedups on the latest machine and how they were measured."""
    records = latest_machine(records)
    timed = [r for r in records if r.result and r.framework in FRAMEWORKS]
    if not timed:
        return "nothing was measured"
    run, frame = timed[0].run, ratio_frame(timed)
    epochs = {r.model: (r.run.train_images, r.run.steady_epochs) for r in timed}
    counts = ", ".join(
        f"{model} {count} of {images:,} images"
        for model, (images, count) in epochs.items()
    )
    versions = ", ".join(f"{name} {text}" for name, text in run.versions.items())
    # Failures of measurements that succeeded when repeated are not listed.
    done = {(record.round, record.cell) for record in timed}
    failures = dict.fromkeys(
        f"**failed**: {' '.join(map(str, record.cell))}: {record.error}"
        for record in records
        if record.error is not None and (record.round, record.cell) not in done
    )
    notes = [
        f"rounds: {max(r.round for r in timed)}; epochs after the first in each: "
        f"{counts}; {run.cores} threads per program",
        f"data: {run.dataset}, sha256 {run.checksum}; packages: {versions}",
        *provenance(timed),
        *RATIO_NOTES,
        *failures,
    ]
    return "\n\n".join(
        [
            f"**{run.dataset.upper()} on {run.device} ({run.cores} cores)**",
            markdown_table(frame) if len(frame) else "no pair to compare",
            bullets(notes),
        ]
    )


def format_tables(records: Sequence[PeerRecord]) -> str:
    """Formats the speedups and the times on the latest machine as Markdown."""
    ratios, records = format_ratios(records), latest_machine(records)
    if not group(records):
        return ratios
    peak = peak_gflops(records)
    notes = [
        f"matmul peak: {f'{peak:,.0f} GFLOP/s' if peak else 'not measured'}",
        *TIME_NOTES,
    ]
    frame = time_frame(records).drop(columns="settings")
    return f"{ratios}\n\n{markdown_table(frame, notes)}"
