"""Tests of the speed comparison of two commits."""

import json
from pathlib import Path

import pytest
from helpers.programs import run

from benchmarks.regress import ROOT

pytestmark = pytest.mark.programs


@pytest.mark.skipif(
    not (ROOT / ".git").exists(), reason="no git checkout to compare with"
)
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
