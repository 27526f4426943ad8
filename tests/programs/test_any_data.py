"""The programs with images of another size than MNIST's."""

import json
import shlex

import numpy as np
import pytest
from helpers.programs import run
from PIL import Image

FEW = ("--epochs=1", "--hidden=4", "--batch_size=32", "--dataset=idx")
pytestmark = pytest.mark.programs


def save(path, classes=25, shape=(12, 20)):
    """Writes an archive of images, the fourth of them also as a picture."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (75, *shape)).astype(np.uint8)
    labels = np.arange(75) % classes
    names = np.array([f"class{label}" for label in range(classes)])
    arrays = dict(x_train=images, y_train=labels, x_test=images, y_test=labels)
    np.savez(path, class_names=names, **arrays)
    Image.fromarray(images[3]).save(path.with_suffix(".png"))
    return f"--data_dir={path}"


def test_programs_take_or_refuse_other_shapes(tmp_path):
    folder, data = f"--run_dir={tmp_path / 'run'}", save(tmp_path / "set.npz")
    run("experiments.train", *FEW, data, folder)
    picture = tmp_path / "set.png"
    images = "--index=3,4", f"--image={picture}"
    output = run("experiments.predict", folder, *images).stdout
    header, first, second, own, *_ = output.splitlines()
    assert header.split() == ["probability", "predicted", "truth"]
    assert first.split()[-1] == "class3" and second.split()[-1] == "class4"
    assert own.split()[1:3] == first.split()[1:3]
    run("experiments.plot", folder)
    assert (tmp_path / "run" / "confusion.png").stat().st_size > 2_000
    summary = run("experiments.summary", *FEW[1:2], "--dataset=idx", data).stdout
    assert " 964 |" in summary and " 125 |" in summary  # 240 * 4 + 4, 4 * 25 + 25
    other = save(tmp_path / "other.npz", classes=26)
    for arguments, message in (
        (("experiments.demo", folder), "mlp for images of 12x20 in 25 classes"),
        (("experiments.predict", folder, other), f"in {tmp_path / 'other.npz'} have"),
    ):
        assert message in run(*arguments, ok=False).stderr
    (tmp_path / "run" / "data_dir.txt").unlink()  # as of a run trained in Python
    error = run("experiments.plot", folder, ok=False).stderr
    assert "--dataset=idx needs the folder of its files" in error


def test_a_sweep_fits_its_data_and_names_them(tmp_path):
    data, out = save(tmp_path / "set.npz", 3, (9, 7)), tmp_path / "a sweep"
    words = ("benchmarks.sweep", *FEW, data, f"--out={out}")
    refused = run(*words, "--vary=crop=0,3,4", ok=False)
    assert "crop=4 cannot be trained: --crop=4 leaves no pixel of" in refused.stderr
    assert not list(out.rglob("config.json"))
    # 6**6 * 4**2 combinations, of which two are drawn.
    names = "beta1", "beta2", "ema", "warmup_fraction", "clip_norm", "label_smoothing"
    many = [f"--vary={name}=0.1,0.2,0.3,0.4,0.5,0.6" for name in names]
    many += ["--vary=crop=0,1,2,3", "--vary=tta=0,1,2,3", "--samples=2"]
    printed = run(*words, *many).stdout
    assert "2/2 done" in printed
    # The flags of the best settings name the data.
    run(*shlex.split(printed.split("best: python -m ")[1].splitlines()[0]))
    best = json.loads((out / "best" / "record.json").read_text())
    shas = {json.loads(p.read_text())["params_sha256"] for p in out.glob("runs/*/*/r*")}
    assert len(shas) == 2 and best["params_sha256"] in shas
