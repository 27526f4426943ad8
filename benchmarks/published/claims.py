"""Tests the conclusions of the published sources against the recorded runs."""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from mnist_jax.records.schema import RunRecord
from mnist_jax.reporting.statistics import Interval, verdict, welch_difference
from mnist_jax.reporting.tables import paired_accuracies

Seeds = Mapping[int, RunRecord]
Runs = Mapping[str, Seeds]  # by system
# How much better the first of two systems is: as text, and by an interval above 0.
Compare = Callable[[str, Seeds, str, Seeds], tuple[str, Interval] | None]


def _accuracy(first: str, a: Seeds, second: str, b: Seeds) -> tuple[str, Interval]:
    """Compares test accuracies, paired by seed."""
    interval = paired_accuracies(a.values(), b.values())
    points = Interval(*(100 * value for value in interval))
    n = len(a.keys() & b.keys())
    means = [np.mean([run.test_accuracy for run in runs.values()]) for runs in (a, b)]
    text = (
        f"{first} {means[0]:.4f}, {second} {means[1]:.4f}: difference "
        f"{points:+.2f} points (n={n} pairs of seeds)"
    )
    return text, interval


def _steady_seconds(runs: Seeds) -> list[float]:
    """Returns the seconds of steady epochs; those of seeds together count once."""
    programs = {
        tuple(epoch.train_seconds for epoch in run.epochs[1:]) for run in runs.values()
    }
    return [seconds for program in sorted(programs) for seconds in program]


def _speed(first: str, a: Seeds, second: str, b: Seeds) -> tuple[str, Interval] | None:
    """Compares the seconds of steady epochs, if both have some."""
    ours, others = _steady_seconds(a), _steady_seconds(b)
    if not ours or not others:
        return None
    # The difference of the logarithms gives an interval of the ratio.
    interval = welch_difference(np.log(others).tolist(), np.log(ours).tolist())
    text = (
        f"{first} {np.median(ours):.2f} s, {second} {np.median(others):.2f} s per "
        f"epoch: ratio {Interval(*np.exp(interval)):.2f} "
        f"(n={len(ours)}, {len(others)} epochs)"
    )
    return text, interval


def _size(first: str, a: Seeds, second: str, b: Seeds) -> tuple[str, Interval]:
    """Compares the numbers of parameters."""
    counts = [next(iter(runs.values())).parameters for runs in (a, b)]
    difference = counts[1] - counts[0]
    text = f"{first} {counts[0]:,}, {second} {counts[1]:,}"
    return text, Interval(difference, difference, difference)


_LARGER = "larger batches give better accuracy at equal epochs"
_RESCALED = "rescaling the pixels improves the MLP"
_CONTROL = "the same with Adam for both (control)"
# Source, claim, what is compared, and orders of the source's systems, the best first.
CLAIMS: tuple[tuple[str, str, Compare, str], ...] = (
    ("AV", "accuracy: LSTM > CNN > DNN after 5 epochs", _accuracy, "lstm > cnn > dnn"),
    ("AV", '"CNN requires fewer parameters"', _size, "cnn > dnn, cnn > lstm"),
    ("AV", '"DNN requires the most parameters"', _size, "lstm > dnn, cnn > dnn"),
    ("AV", "DNN trains fastest, LSTM slowest", _speed, "dnn > cnn > lstm"),
    ("ML10", f"{_RESCALED} (warm-started, as published)", _accuracy, "mlp > mlp_raw"),
    ("ML10", f"{_RESCALED} (from scratch)", _accuracy, "mlp_fresh > mlp_raw"),
    (
        "ML10",
        'the CNN is "a real improvement" over the MLP',
        _accuracy,
        "cnn > mlp, cnn > mlp_fresh",
    ),
    (
        "FJ",
        "strides instead of pooling: the same parameters, less computation",
        _speed,
        "cnn_stride > cnn_pool",
    ),
    (
        "FJ",
        "the CNN is more accurate than the fully connected net (as published: Adam "
        "against SGD 1e-3)",
        _accuracy,
        "cnn_stride > fc",
    ),
    ("FJ", _CONTROL, _accuracy, "cnn_stride > fc_adam"),
    (
        "FJ",
        "the fully connected net trains faster (as published)",
        _speed,
        "fc > cnn_stride",
    ),
    ("FJ", _CONTROL, _speed, "fc_adam > cnn_stride"),
    (
        "FJ",
        f"{_LARGER} (fully connected, SGD; 32, 128, 512)",
        _accuracy,
        "fc_b512 > fc > fc_b32",
    ),
    (
        "FJ",
        f"{_LARGER} (CNN, Adam; 32, 128, 512)",
        _accuracy,
        "cnn_stride_b512 > cnn_stride > cnn_stride_b32",
    ),
)


def _test(runs: Runs, prefix: str, compare: Compare, order: str) -> tuple[str, str]:
    """Returns what was measured and the verdict: all of the comparisons must hold."""
    texts, results = [], []
    for chain in order.split(", "):
        for pair in itertools.pairwise(chain.split(" > ")):
            first, second = (f"{prefix}_{name}" for name in pair)
            a, b = runs.get(first, {}), runs.get(second, {})
            made = compare(first, a, second, b) if a and b else None
            if made is None:
                return "not all runs are there", "not tested"
            texts.append(made[0])
            results.append(verdict(made[1], 0, "holds", "does not hold"))
    worst = min(results, key=["does not hold", "undecided", "holds"].index)
    return "; ".join(texts), worst


def claims_frame(runs: Runs) -> pd.DataFrame:
    """Returns every claim of the sources about their systems, with a verdict.

    A claim whose systems are missing is "not tested".
    """
    rows = [
        (source, claim, *_test(runs, source.lower(), compare, order))
        for source, claim, compare, order in CLAIMS
    ]
    return pd.DataFrame(rows, columns=["source", "claim", "measured", "verdict"])
