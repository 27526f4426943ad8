"""Tests of the profile: operation scopes, trace sums, time per phase."""

import json
import re
from pathlib import Path

import pytest
from helpers.programs import DIGITS, run

from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.profiling import hardware
from mnist_jax.profiling.profile import profile, read_scopes
from mnist_jax.training.prepare import prepare

HLO = """
  ROOT %dot.7 = f32[4]{0} dot(%p, %p), metadata={op_name="jit(f)/while/body/A/dot"}
  %pair.2 = (f32[4]{0}, f32[4]{0}) fusion(%p), metadata={op_name="jit(f)/B/add"}
  %wrapped_iota.10 = s32[4]{0} fusion(%p), kind=kLoop
  ROOT %while.9 = (f32[4]{0}) while(%p), metadata={op_name="jit(f)/while"}
"""


def test_scopes_omit_what_jax_adds():
    scopes = {"dot.7": "A/dot", "pair.2": "B/add", "wrapped_iota.10": "wrapped_iota"}
    assert read_scopes(HLO) == scopes


@pytest.mark.parametrize("model, layer", [("mlp", "Dense_"), ("cnn", "Conv_")])
def test_profile_lists_layers_and_adds_up(
    model, layer, digits: Dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(hardware, "SIZES", (256,))
    layers = dict(hidden=(64,)) if model == "mlp" else dict(hidden=(), conv=("4",))
    config = TrainConfig(model=model, dataset="digits", batch_size=64, **layers)
    text = profile(prepare(config, digits), tmp_path)
    phases, operations, summary = text.split("\n\n")
    for name in ("input", "training steps", "evaluation", "host"):
        assert f"| {name} " in phases
    shares = [float(share) for share in re.findall(r"([\d.]+)% \|", phases)]
    assert sum(shares) == pytest.approx(100, abs=0.3)
    assert len(re.findall(layer, operations)) >= 2
    assert "us per step, all devices" in operations
    assert re.search(r"GFLOP/s, [\d.]+% of the [\d,]+ GFLOP/s measured", summary)
    assert Path(re.search(r"trace: (\S+)", text)[1]).is_file()


@pytest.mark.programs
def test_train_prints_a_profile(tmp_path):
    process = run("experiments.train", *DIGITS, "--profile", f"--run_dir={tmp_path}")
    assert "most expensive operations, by scope" in process.stdout
    assert json.loads((tmp_path / "record.json").read_text())
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
