"""Tests of the static page: its network and its preprocessing, in a browser."""

import base64
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.browser import Browser

from mnist_jax.config import TrainConfig
from mnist_jax.data.pixels import Preprocess
from mnist_jax.data.types import IMAGE_SHAPE, MNIST, Dataset
from mnist_jax.data.user_images import digit_from_bytes
from mnist_jax.demo.static_page import write_static_page
from mnist_jax.errors import InputError
from mnist_jax.models.networks import create_model, init_params
from mnist_jax.training.run_dir import TrainedRun, load_run

CONFIGS: dict[str, dict[str, Any]] = {
    "mlp": dict(hidden=(16, 12), pixels="standardized", crop=2),
    "mlp on l2 columns": dict(pixels="l2", hidden=()),
    "cnn": dict(
        model="cnn",
        conv=("4:k5:same:s2:tanh:bn", "6:k4:same:pool2:bn", "16:k2:linear:pool3"),
        crop=1,
    ),
    "strided cnn": dict(model="cnn", conv=("4:s2", "6:k2:same:s2:relu"), pixels="raw"),
    "lstm": dict(
        model="lstm", lstm_units=(12, 9), activation="relu", hidden=(), impl="plain"
    ),
    "tanh lstm": dict(
        model="lstm", lstm_units=(10,), hidden=(8,), crop=4, impl="plain"
    ),
}


@pytest.fixture(scope="module")
def mlp(run_dir: Path) -> TrainedRun:
    """A finished run of a small MLP."""
    return load_run(run_dir)


def random_run(run: TrainedRun, config: TrainConfig) -> TrainedRun:
    """Returns a run of another config, with random parameters: no 0 bias, no 1 scale.

    Not trained, since to compile the training of six networks would take half a minute.
    """
    rng = np.random.default_rng(0)
    params = init_params(create_model(config, MNIST), jax.random.key(0), IMAGE_SHAPE)
    params = jax.tree.map(
        # With large biases: some channels are negative in a whole pooling window.
        lambda leaf: np.float32(
            leaf + rng.uniform(-1, 1, leaf.shape) * (0.5 if leaf.ndim == 1 else 0.2)
        ),
        params,
    )
    preprocess = Preprocess(config.pixels)
    if config.pixels == "standardized":
        preprocess = Preprocess(config.pixels, 0.13, 0.31)
    return dataclasses.replace(run, config=config, params=params, preprocess=preprocess)


def open_page(browser: Browser, run: TrainedRun, folder: Path) -> Path:
    """Writes the page of a run and opens it from disk."""
    path = folder / "page.html"
    write_static_page(run, path)
    browser.open(path.as_uri())
    return path


def predict(browser: Browser, images: np.ndarray) -> np.ndarray:
    """Returns the probabilities that the page's network gives images."""
    script = "return arguments[0].map(predictPixels)"
    return np.array(browser.run(script, images.reshape(len(images), -1).tolist()))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_page_predicts_what_the_run_predicts(
    browser: Browser, digits: Dataset, mlp: TrainedRun, tmp_path, name
):
    config = TrainConfig(dataset="digits", **{"hidden": (16,), **CONFIGS[name]})
    run = random_run(mlp, config)
    open_page(browser, run, tmp_path)
    images = digits.test.images[:20]
    expected = run.predict(images)
    assert expected.std(axis=0).max() > 1e-3  # the images are told apart
    np.testing.assert_allclose(predict(browser, images), expected, atol=1e-5)
    assert browser.console() == []


# Strokes in pixels of the 280x280 canvas. Every kind of step is needed by some: thick
# and thin digits, a warning of each kind, specks, and ink at the border.
SEVEN = [(80, 60), (200, 60), (120, 230)]
DRAWINGS: dict[str, tuple[float, list[list[tuple[int, int]]]]] = {
    "seven": (21.5, [SEVEN]),
    "thin seven": (4, [SEVEN]),
    "dot": (21.5, [[(140, 140), (141, 140)]]),
    "with a speck": (21.5, [SEVEN, [(282, 150), (284, 150)]]),
    "one": (30, [[(140, 70), (141, 210)]]),
    "loop": (12, [[(60, 60), (220, 70), (200, 200), (60, 190), (60, 60)]]),
    "two digits": (21.5, [[(60, 50), (62, 230)], [(200, 60), (205, 220)]]),
    "sheet": (150, [[(130, 130), (160, 150)]]),
    "at the border": (21.5, [[(0, 40), (279, 100), (40, 279)]]),
    "along the border": (60, [[(0, 0), (279, 0), (279, 279)]]),
}
DRAW = """
const [width, strokes] = arguments;
const brush = pad.getContext("2d");
brush.fillStyle = color("--card");
brush.fillRect(0, 0, pad.width, pad.height);
brush.strokeStyle = color("--ink");
brush.lineWidth = width;
brush.lineCap = brush.lineJoin = "round";
for (const stroke of strokes) {
  brush.beginPath();
  brush.moveTo(...stroke[0]);
  stroke.forEach(point => brush.lineTo(...point));
  brush.stroke();
}
const {pixels, warning} = readDrawing(pad);
return [pad.toDataURL("image/png").split(",")[1], [...pixels], warning];
"""


def read_in_both(
    browser: Browser, width: float, strokes: Sequence[Sequence[tuple[int, int]]]
) -> tuple[np.ndarray, str, np.ndarray, str]:
    """Draws, and returns the pixels and the warning of the page and of the library."""
    png, pixels, warning = browser.run(DRAW, width, strokes)
    expected = digit_from_bytes(base64.b64decode(png), "the drawing", False)
    shown = np.array(pixels).reshape(28, 28)
    return shown, warning, expected.pixels, expected.warning


@pytest.mark.parametrize("dark", [False, True])
def test_the_page_reads_drawings_as_the_library(browser: Browser, mlp, tmp_path, dark):
    browser.prefer_dark(dark)
    open_page(browser, mlp, tmp_path)
    warnings = set()
    for name, (width, strokes) in DRAWINGS.items():
        shown, warning, expected, doubt = read_in_both(browser, width, strokes)
        # float32 sums in another order may round to the next grey level
        assert np.abs(shown - expected).max() <= 1, name
        assert warning.split(",")[0] == doubt.split(",")[0].split(" on an even")[0], (
            name
        )
        warnings.add(warning[:40])
    assert len(warnings) == 3
    assert browser.console() == []


def test_random_drawings_are_read_as_by_the_library(browser: Browser, mlp, tmp_path):
    open_page(browser, mlp, tmp_path)
    rng = np.random.default_rng(0)
    for _ in range(10):
        strokes = [
            rng.integers(0, 280, (rng.integers(2, 6), 2)).tolist()
            for _ in range(rng.integers(1, 4))
        ]
        shown, warning, expected, doubt = read_in_both(
            browser, rng.uniform(2, 40), strokes
        )
        assert np.abs(shown - expected).max() <= 1, strokes
        assert bool(warning) == bool(doubt), strokes


def test_a_drawing_is_classified_without_a_server(browser: Browser, mlp, tmp_path):
    browser.resize(1000, 740)
    path = open_page(browser, mlp, tmp_path)
    assert not re.search(r"https?:|src=", path.read_text())
    [x, y] = browser.run("const b = pad.getBoundingClientRect(); return [b.x, b.y]")
    browser.drag([(x + 150, y + 50), (x + 150, y + 150), (x + 150, y + 250)], "mouse")
    status, seen, cells = browser.run(
        """
        return new Promise(resolve => (function poll() {
          const text = status.textContent;
          if (requesting || !text.includes(" ms.")) return setTimeout(poll, 20);
          const seenAlpha = seen.getContext("2d").getImageData(0, 0, 28, 28).data
            .filter((value, n) => n % 4 === 3);
          resolve([text, [...seenAlpha],
            [...document.querySelectorAll("td")].map(cell => cell.textContent)]);
        })());
        """
    )
    assert status.startswith("Predicted in")
    [expected] = mlp.predict(np.array(seen, np.uint8).reshape(1, 28, 28))
    assert cells == [f"{100 * p:.1f}%" for p in expected]
    assert browser.run("return seen.clientWidth") == 4 * 28
    assert browser.run("return document.querySelector('.note').textContent") == (
        f"test accuracy {mlp.record.test_accuracy:.2%}"
    )
    assert browser.console() == []


def test_names_cannot_end_the_script(mlp: TrainedRun, tmp_path):
    record = dataclasses.replace(mlp.record, dataset="</script><b>")
    write_static_page(dataclasses.replace(mlp, record=record), tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert text.count("</script>") == text.count("<script>") == 4


def test_custom_networks_cannot_be_exported(mlp: TrainedRun, tmp_path):
    config = TrainConfig(model="net.py:Net")
    run = dataclasses.replace(mlp, config=config)
    with pytest.raises(InputError, match=r"net.py:Net as HTML.*\(mlp, lstm, cnn\)"):
        write_static_page(run, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
