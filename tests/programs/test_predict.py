"""End-to-end tests of `experiments.predict`."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
from helpers.programs import run
from PIL import Image

from mnist_jax.data.datasets import load_dataset
from mnist_jax.data.published import SETS


def test_it_prints_probabilities_arg_max_and_truth(run_dir: Path):
    command = ("experiments.predict", f"--run_dir={run_dir}", "--index=20,3")
    header, *rows = run(*command).stdout.strip().splitlines()
    assert header.split()[-2:] == ["predicted", "truth"]
    for row, index in zip(rows, (20, 3), strict=True):
        name, *probabilities, predicted, truth = row.split()
        assert int(name) == index and 0 <= int(truth) <= 9
        values = [float(p) for p in probabilities]
        assert abs(sum(values) - 1) < 1e-3 and values[int(predicted)] == max(values)


def test_it_draws_test_images_and_user_images(run_dir: Path, tmp_path):
    image, picture = tmp_path / "my one.png", tmp_path / "prediction.png"
    pixels = np.full((90, 60), 255, np.uint8)
    pixels[10:80, 25:35] = 0
    Image.fromarray(pixels).save(image)
    command = ("experiments.predict", f"--run_dir={run_dir}")
    process = run(*command, "--index=3", f"--image={image}", f"--picture={picture}")
    header, test, user = process.stdout.splitlines()[:3]
    assert header.split()[-2:] == ["predicted", "truth"]
    assert test.startswith("3 ") and user.startswith(str(image))
    assert test.split()[-1].isdigit() and user.split()[-1] == "-"
    assert picture.stat().st_size > 2_000
    process = run(*command, f"--image={image}", f"--image={__file__}", ok=False)
    assert "cannot identify image file" in process.stderr


def test_pictures_are_read_as_digits_or_as_they_are(run_dir: Path, tmp_path):
    """A network that was not trained on digits gets its own images unchanged."""
    own = tmp_path / "own.png"
    Image.fromarray(load_dataset("digits").test.images[3]).save(own)
    fashion = tmp_path / "fashion"
    shutil.copytree(run_dir, fashion)
    content = json.loads((fashion / "record.json").read_text())
    content |= dict(
        dataset="fashion_mnist", class_names=SETS["fashion_mnist"].class_names
    )
    (fashion / "record.json").write_text(json.dumps(content))
    program = "experiments.predict"
    process = run(program, f"--run_dir={fashion}", f"--image={own}")
    row = run(program, f"--run_dir={run_dir}", "--index=3").stdout.splitlines()[1]
    assert process.stdout.splitlines()[1].split()[1:11] == row.split()[1:11]
    assert "read without cropping" in process.stdout
    assert "classes of fashion_mnist: p0 T-shirt/top, p1 Trouser" in process.stdout
    assert re.search("[A-Z][a-z]+", process.stdout.splitlines()[1].split()[-1])
    process = run(program, f"--run_dir={run_dir}", f"--image={own}")
    assert "read as digits" in process.stdout
    assert process.stdout.splitlines()[1].split()[1:11] != row.split()[1:11]
