"""Tests the conclusions of the published sources against the recorded runs."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from mnist_jax.data.types import MNIST
from mnist_jax.models.flops import multiply_adds
from mnist_jax.records.schema import RunRecord
from mnist_jax.reporting.intervals import Interval, paired_difference

from ..statistics import difference, verdict_of

Runs = Mapping[str, Mapping[int, RunRecord]]  # by system, then by seed


class Claim(NamedTuple):
    """One row of the table."""

    source: str
    claim: str
    measured: str
    verdict: str


def _accuracies(runs: Runs, first: str, second: str) -> tuple[list, list]:
    """Returns two systems' test accuracies for the seeds that both have."""
    a, b = runs.get(first, {}), runs.get(second, {})
    seeds = sorted(set(a) & set(b))
    return [a[s].test_accuracy for s in seeds], [b[s].test_accuracy for s in seeds]


def _undecided(verdict: str, n: int) -> str:
    """Appends the sample size to a verdict that more samples may change."""
    return f"undecided at n = {n}" if verdict == "undecided" else verdict


def _all_hold(verdicts: Sequence[str]) -> str:
    """Combines the verdicts of a claim's comparisons: all of them must hold."""
    for verdict in ("does not hold", "undecided"):
        if verdict in verdicts:
            return verdict
    return "holds"


def _pairs(order: str) -> list[tuple[str, str]]:
    """Returns the pairs that an ordering compares.

    >>> _pairs("a > b > c, a > d")
    [('a', 'b'), ('b', 'c'), ('a', 'd')]
    """
    return [
        pair
        for chain in order.split(", ")
        for pair in itertools.pairwise(chain.split(" > "))
    ]


def _more_accurate(runs: Runs, source: str, claim: str, order: str) -> Claim:
    """Tests an ordering of systems by test accuracy, the most accurate first."""
    texts, verdicts, n = [], [], 0
    for first, second in _pairs(order):
        a, b = _accuracies(runs, first, second)
        if not a:
            return Claim(source, claim, f"{first} or {second} not run", "not tested")
        interval, n = paired_difference(a, b), len(a)
        texts.append(
            f"{first} {np.mean(a):.4f}, {second} {np.mean(b):.4f}: difference "
            f"{100 * interval.mean:+.2f} points [{100 * interval.low:+.2f}, "
            f"{100 * interval.high:+.2f}]"
        )
        verdicts.append(verdict_of(interval))
    verdict = _undecided(_all_hold(verdicts), n)
    return Claim(source, claim, f"{'; '.join(texts)} (n={n} pairs of seeds)", verdict)


def _steady_seconds(runs: Runs, name: str) -> list[float]:
    """Returns the seconds per seed of a system's steady epochs.

    Seeds trained together share their epochs, which are counted once.
    """
    programs = {
        tuple(epoch.train_seconds for epoch in record.epochs[1:])
        for record in runs.get(name, {}).values()
    }
    return [seconds for program in sorted(programs) for seconds in program]


def _faster(runs: Runs, source: str, claim: str, order: str) -> Claim:
    """Tests an ordering of systems by seconds per steady epoch, the fastest first."""
    texts, verdicts, n = [], [], 0
    for first, second in _pairs(order):
        a, b = _steady_seconds(runs, first), _steady_seconds(runs, second)
        if not a or not b:
            text = f"{first} or {second} has no run of two epochs"
            return Claim(source, claim, text, "not tested")
        # The difference of the logarithms gives an interval of the ratio.
        interval = difference(np.log(b).tolist(), np.log(a).tolist())
        ratio, n = Interval(*np.exp(interval)), min(len(a), len(b), n or len(a))
        texts.append(
            f"{first} {np.median(a):.2f} s, {second} {np.median(b):.2f} s per epoch: "
            f"ratio {ratio.mean:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] "
            f"(n={len(a)}, {len(b)} epochs)"
        )
        verdicts.append(verdict_of(interval))
    return Claim(source, claim, "; ".join(texts), _undecided(_all_hold(verdicts), n))


def _parameters(runs: Runs, *names: str) -> dict[str, int]:
    """Returns the parameter counts of the systems that were run."""
    return {
        name: next(iter(runs[name].values())).parameters
        for name in names
        if runs.get(name)
    }


def _av_parameters(runs: Runs) -> list[Claim]:
    """Tests AV's claims about parameter counts, which involve no randomness."""
    claims = {
        '"CNN requires fewer parameters"': ("av_cnn", min),
        '"DNN requires the most parameters"': ("av_dnn", max),
    }
    counts = _parameters(runs, "av_dnn", "av_lstm", "av_cnn")
    if len(counts) < 3:
        return [Claim("AV", c, "not all three run", "not tested") for c in claims]
    text = ", ".join(f"{name} {count:,}" for name, count in counts.items())
    return [
        Claim(
            "AV",
            c,
            text,
            "holds"
            if best(counts, key=counts.__getitem__) == name
            else "does not hold",
        )
        for c, (name, best) in claims.items()
    ]


def _strides_cost_less(runs: Runs) -> Claim:
    """Tests FJ's claim about strides: parameters, multiply-adds and seconds."""
    claim = "strides instead of pooling: the same parameters, less computation"
    names = ("fj_cnn_stride", "fj_cnn_pool")
    counts = _parameters(runs, *names)
    if len(counts) < 2:
        return Claim("FJ", claim, "not both run", "not tested")
    configs = [next(iter(runs[name].values())).config for name in names]
    work = [sum(multiply_adds(config, MNIST)) for config in configs]
    timed = _faster(runs, "FJ", claim, " > ".join(names))
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
    accurate, faster = partial(_more_accurate, runs), partial(_faster, runs)
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
        *_av_parameters(runs),
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
