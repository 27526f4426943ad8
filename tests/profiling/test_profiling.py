"""Tests of the profile: operation scopes, trace sums, time per phase."""

import json
import re
from pathlib import Path

import pytest
from helpers.programs import DIGITS, run

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.profiling import hardware
from mnist_jax.profiling.profile import format_profile, profile, read_scopes
from mnist_jax.training.prepare import prepare

pytestmark = pytest.mark.slow

HLO = """
%fused.1 (p: f32[4]) -> f32[4] {
  ROOT %dot.7 = f32[4]{0} dot(%p, %p), metadata={op_name="jit(f)/while/body/A/dot"}
}

%body (p: (f32[4], s32[])) -> (f32[4], s32[]) {
  %fusion.3 = f32[4]{0} fusion(%p), kind=kCustom, calls=%fused.1
  %pair.2 = (f32[4]{0}, f32[4]{0}) fusion(%p), metadata={op_name="jit(f)/B/add"}
  ROOT %while.9 = (f32[4]{0}) while(%p), metadata={op_name="jit(f)/while"}
}
"""


def test_scopes_omit_what_jax_adds():
    scopes = read_scopes(HLO)
    assert scopes == {"dot.7": "A/dot", "fusion.3": "A/dot", "pair.2": "B/add"}


def test_profile_lists_layers_and_adds_up(digits: Dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "SIZES", (256,))
    config = TrainConfig(model="mlp", dataset="digits", hidden=(64,), batch_size=64)
    found = profile(prepare(config, digits), tmp_path)
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert abs(found.scopes["share"].sum() - 1) < 1e-6
    assert any("Dense_0" in scope for scope in found.scopes["scope"])
    assert set(found.seconds) == {"input", "training steps", "evaluation", "host"}
    assert all(value >= 0 for value in found.seconds.values())
    assert 0 < found.gflops and 0 < found.peak_gflops and found.peak_megabytes > 100
    text = format_profile(found, tmp_path)
    assert len(re.findall(r"Dense_", text)) >= 2 and "us per step, all devices" in text
    assert Path(re.search(r"trace: (\S+)", text)[1]).is_file()
    assert "above 100%" not in format_profile(found._replace(gflops=1.0), tmp_path)
    found = found._replace(gflops=78.0, peak_gflops=52.0)
    fast = "150.0% of the 52 GFLOP/s measured .* in float32 .above 100%: Winograd's"
    assert re.search(fast, format_profile(found, tmp_path))


def test_train_and_throughput_profile(tmp_path):
    process = run("experiments.train", *DIGITS, "--profile", f"--run_dir={tmp_path}/a")
    assert "most expensive operations, by scope" in process.stdout
    assert json.loads((tmp_path / "a" / "record.json").read_text())
    process = run(
        "benchmarks.throughput",
        *("--models=mlp", "--batch_sizes=16", "--images=64", "--repeats=1"),
        *("--starts=0", "--profile", f"--out={tmp_path}"),
    )
    assert "where the time goes" in process.stdout
    assert list((tmp_path / "profile" / "mlp-16").rglob("*.xplane.pb"))
