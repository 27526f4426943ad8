"""Tests the conclusions of the published sources against the recorded runs."""

import itertools
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mnist_jax.data.types import MNIST
from mnist_jax.models.flops import multiply_adds
from mnist_jax.records.schema import RunRecord
from mnist_jax.reporting.statistics import (
    Interval,
    paired_difference,
    verdict,
    welch_difference,
)

Runs = Mapping[str, Mapping[int, RunRecord]]  # by system, then by seed
NOT_TESTED = "not all runs are there", "not tested"


class Claim(NamedTuple):
    """One row of the table."""

    source: str
    claim: str
    measured: str
    verdict: str


class Comparison(NamedTuple):
    """Two systems, the first of which is claimed to be better."""

    text: str
    interval: Interval  # above 0 if it is
    n: int


def _accuracy(runs: Runs, first: str, second: str) -> Comparison | None:
    """Compares test accuracies, paired by seed."""
    a, b = runs.get(first, {}), runs.get(second, {})
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        return None
    ours, others = ([found[seed].test_accuracy for seed in seeds] for found in (a, b))
    interval = paired_difference(ours, others)
    points = Interval(*(100 * value for value in interval))
    text = (
        f"{first} {np.mean(ours):.4f}, {second} {np.mean(others):.4f}: difference "
        f"{points:+.2f} points (n={len(seeds)} pairs of seeds)"
    )
    return Comparison(text, interval, len(seeds))


def _steady_seconds(runs: Runs, name: str) -> list[float]:
    """Returns the seconds per seed of a system's steady epochs.

    Seeds trained together share their epochs, which are counted once.
    """
    programs = {
        tuple(epoch.train_seconds for epoch in record.epochs[1:])
        for record in runs.get(name, {}).values()
    }
    return [seconds for program in sorted(programs) for seconds in program]


def _speed(runs: Runs, first: str, second: str) -> Comparison | None:
    """Compares the seconds of steady epochs."""
    a, b = _steady_seconds(runs, first), _steady_seconds(runs, second)
    if not a or not b:
        return None
    # The difference of the logarithms gives an interval of the ratio.
    interval = welch_difference(np.log(b).tolist(), np.log(a).tolist())
    text = (
        f"{first} {np.median(a):.2f} s, {second} {np.median(b):.2f} s per epoch: "
        f"ratio {Interval(*np.exp(interval)):.2f} (n={len(a)}, {len(b)} epochs)"
    )
    return Comparison(text, interval, min(len(a), len(b)))


def _ordered(
    runs: Runs,
    compare: Callable[[Runs, str, str], Comparison | None],
    source: str,
    claim: str,
    order: str,
) -> Claim:
    """Tests an ordering of systems such as "a > b > c, a > d", the best first.

    All of its comparisons must hold.
    """
    pairs = [
        pair
        for chain in order.split(", ")
        for pair in itertools.pairwise(chain.split(" > "))
    ]
    found = [made for pair in pairs if (made := compare(runs, *pair))]
    if len(found) < len(pairs):
        return Claim(source, claim, *NOT_TESTED)
    verdicts = {verdict(made.interval, 0, "holds", "does not hold") for made in found}
    result = "holds"
    if "does not hold" in verdicts:
        result = "does not hold"
    elif "undecided" in verdicts:
        result = f"undecided at n = {min(made.n for made in found)}"
    return Claim(source, claim, "; ".join(made.text for made in found), result)


def _parameters(runs: Runs, *names: str) -> dict[str, int]:
    """Returns the parameter counts of the systems that were run."""
    found = {name: list(runs.get(name, {}).values()) for name in names}
    return {name: rows[0].parameters for name, rows in found.items() if rows}


def _extreme(runs: Runs, claim: str, name: str, best: Callable[..., Any]) -> Claim:
    """Tests AV's claim that a system has the fewest or most parameters."""
    counts = _parameters(runs, "av_dnn", "av_lstm", "av_cnn")
    if len(counts) < 3:
        return Claim("AV", claim, *NOT_TESTED)
    text = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    holds = best(counts, key=counts.__getitem__) == name
    return Claim("AV", claim, text, "holds" if holds else "does not hold")


def _strides_cost_less(runs: Runs) -> Claim:
    """Tests FJ's claim about strides: parameters, multiply-adds and seconds."""
    claim = "strides instead of pooling: the same parameters, less computation"
    names = ("fj_cnn_stride", "fj_cnn_pool")
    counts = _parameters(runs, *names)
    if len(counts) < 2:
        return Claim("FJ", claim, *NOT_TESTED)
    configs = [next(iter(runs[name].values())).config for name in names]
    work = [sum(multiply_adds(config, MNIST)) for config in configs]
    timed = _ordered(runs, _speed, "FJ", claim, " > ".join(names))
    exact = len(set(counts.values())) == 1 and work[0] < work[1]
    text = (
        f"{counts[names[0]]:,} and {counts[names[1]]:,} parameters; "
        f"{work[0] / 1e6:.2f} and {work[1] / 1e6:.2f} million multiply-adds per image "
        f"in the forward pass; {timed.measured}"
    )
    return Claim("FJ", claim, text, timed.verdict if exact else "does not hold")


def check_claims(runs: Runs) -> list[Claim]:
    """Tests every claim that the sources make about their systems.

    Args:
        runs: run records by system and seed; a claim whose systems are missing is "not
            tested".
    """
    accurate, faster = (
        partial(_ordered, runs, _accuracy),
        partial(_ordered, runs, _speed),
    )
    control = "the same with Adam for both (control)"
    larger = "larger batches give better accuracy at equal epochs"
    rescaled = "rescaling the pixels improves the MLP"
    order = "av_lstm > av_cnn > av_dnn"
    mlps = "ml10_cnn > ml10_mlp, ml10_cnn > ml10_mlp_fresh"
    sgd = "fj_fc_b512 > fj_fc > fj_fc_b32"
    adam = "fj_cnn_stride_b512 > fj_cnn_stride > fj_cnn_stride_b32"
    against_sgd = (
        "the CNN is more accurate than the fully connected net (as published: Adam "
        "against SGD 1e-3)"
    )
    return [
        accurate("AV", "accuracy: LSTM > CNN > DNN after 5 epochs", order),
        _extreme(runs, '"CNN requires fewer parameters"', "av_cnn", min),
        _extreme(runs, '"DNN requires the most parameters"', "av_dnn", max),
        faster("AV", "DNN trains fastest, LSTM slowest", "av_dnn > av_cnn > av_lstm"),
        accurate(
            "ML10",
            f"{rescaled} (warm-started, as published)",
            "ml10_mlp > ml10_mlp_raw",
        ),
        accurate("ML10", f"{rescaled} (from scratch)", "ml10_mlp_fresh > ml10_mlp_raw"),
        accurate("ML10", 'the CNN is "a real improvement" over the MLP', mlps),
        _strides_cost_less(runs),
        accurate("FJ", against_sgd, "fj_cnn_stride > fj_fc"),
        accurate("FJ", control, "fj_cnn_stride > fj_fc_adam"),
        faster(
            "FJ",
            "the fully connected net trains faster (as published)",
            "fj_fc > fj_cnn_stride",
        ),
        faster("FJ", control, "fj_fc_adam > fj_cnn_stride"),
        accurate("FJ", f"{larger} (fully connected, SGD; 32, 128, 512)", sgd),
        accurate("FJ", f"{larger} (CNN, Adam; 32, 128, 512)", adam),
    ]


def claims_frame(runs: Runs) -> pd.DataFrame:
    """Returns the claims as a table."""
    return pd.DataFrame(check_claims(runs))
