"""End-to-end tests of `experiments.export`."""

from pathlib import Path

from helpers.programs import run


def test_a_run_is_exported_to_each_format(run_dir: Path, tmp_path):
    command = ("experiments.export", f"--run_dir={run_dir}")
    beside = run_dir.resolve().with_name(f"{run_dir.name}.stablehlo")
    for name, file in (("onnx", tmp_path / "new" / "a.onnx"), ("stablehlo", beside)):
        out = [] if file == beside else [f"--out={file}"]
        lines = run(*command, f"--format={name}", *out).stdout.splitlines()
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
    assert "Directory not empty" in run(*export, ok=False).stderr
    # An export is a run: nothing may be trained over it.
    train = run("experiments.train", f"--run_dir={folder}", ok=False)
    assert "model.safetensors" in train.stderr
