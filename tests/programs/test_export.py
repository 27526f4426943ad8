"""End-to-end tests of `experiments.export`."""

from pathlib import Path

import pytest
from helpers.programs import run

pytestmark = pytest.mark.slow


def test_a_run_is_exported_to_each_format(run_dir: Path, tmp_path):
    command = ("experiments.export", f"--run_dir={run_dir}")
    for name in ("onnx", "stablehlo"):
        file = tmp_path / "new" / f"network.{name}"
        lines = run(*command, f"--format={name}", f"--out={file}").stdout.splitlines()
        assert lines[0] == f"written: {file} ({file.stat().st_size:,} bytes)"
        assert lines[1].startswith("checked on 360 test images: probabilities differ")
    folder = tmp_path / "network"
    export = (*command, "--format=safetensors", f"--out={folder}")
    assert run(*export).stdout.count("written:") == 4
    predictions = [
        run("experiments.predict", f"--run_dir={path}", "--index=5,6").stdout
        for path in (run_dir, folder)
    ]
    assert predictions[0] == predictions[1]
    assert "already exists, and --format=safetensors" in run(*export, ok=False).stderr
    # An export is a run: nothing may be trained over it.
    train = run("experiments.train", f"--run_dir={folder}", ok=False)
    assert "model.safetensors" in train.stderr
