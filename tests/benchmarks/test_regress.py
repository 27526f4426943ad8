"""Tests of the speed comparison of two commits."""

import json
from pathlib import Path

import pytest
from helpers.programs import run

from benchmarks.regress import ROOT, judge

pytestmark = pytest.mark.slow

needs_git = pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="no git checkout to compare with"
)


@pytest.mark.parametrize(
    "here, there, verdict",
    [
        ([1.0, 1.1, 1.05], [1.3, 1.4, 1.37], "faster"),
        ([1.3, 1.4, 1.37], [1.0, 1.1, 1.05], "slower"),
        ([1.0, 1.5, 1.2], [1.2, 1.1, 1.4], "undecided"),
        ([1.0, 1.0], [1.0, 1.0], "undecided"),
    ],
)
def test_a_verdict_needs_the_whole_interval_on_one_side(here, there, verdict):
    ratio, got = judge(here, there)
    assert got == verdict
    assert ratio.low <= ratio.mean <= ratio.high


@needs_git
def test_a_commit_is_timed_against_the_checkout(tmp_path: Path):
    out = tmp_path / "history.jsonl"
    process = run(
        "benchmarks.regress",
        *("--models=mlp", "--dataset=digits", "--rounds=2", f"--out={out}"),
        ok=None,  # at this size either commit may be slower
    )
    assert process.returncode in (0, 3) and "here/there" in process.stdout
    [record] = map(json.loads, out.read_text().splitlines())
    assert [len(seconds) for seconds in record["seconds"].values()] == [2, 2]
    assert len(record["against"]) == 40


@needs_git
def test_an_unknown_commit_is_rejected():
    process = run("benchmarks.regress", "--against=no-such", ok=False)
    assert "no-such" in process.stderr


@needs_git
def test_a_checkout_that_cannot_be_timed_reports_why(tmp_path: Path):
    process = run(
        "benchmarks.regress",
        *("--models=mlp", "--dataset=digits", "--rounds=2", "--batch_size=9999"),
        f"--out={tmp_path / 'history.jsonl'}",
        ok=False,
    )
    assert "--batch_size must be at most the 1437 training" in process.stderr
