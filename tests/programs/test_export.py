"""End-to-end tests of `experiments.export`."""

from pathlib import Path

from helpers.programs import run


def test_a_run_is_exported_to_each_format(run_dir: Path, tmp_path):
    command = ("experiments.export", f"--run_dir={run_dir}")
    beside = run_dir.resolve().with_name(f"{run_dir.name}.stablehlo")
    for name, file in (
        ("onnx", tmp_path / "new" / "a.onnx"),
        ("stablehlo", beside),
        ("safetensors", tmp_path / "model.safetensors"),
    ):
        out = [] if file == beside else [f"--out={file}"]
        lines = run(*command, f"--format={name}", *out).stdout.splitlines()
        assert lines[0] == f"written: {file} ({file.stat().st_size:,} bytes)"
        assert lines[1].startswith("checked on 360 test images: probabilities differ")
