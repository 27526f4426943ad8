"""The demo: its networks and its preprocessing in a browser, and its program."""

import base64
import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import Browser
from helpers.programs import run
from helpers.trained import NETWORKS, make_run

from mnist_jax.config import TrainConfig
from mnist_jax.data.published import SETS
from mnist_jax.data.types import Dataset
from mnist_jax.data.user_images import read_digit
from mnist_jax.demo.page import write_page
from mnist_jax.errors import InputError

MLP = make_run(hidden=(16,))


def test_the_page_predicts_what_the_runs_predict(
    browser: Browser, digits: Dataset, tmp_path
):
    runs = {name: make_run(**settings) for name, settings in NETWORKS.items()}
    write_page(runs, tmp_path / "page.html")
    browser.open((tmp_path / "page.html").as_uri())
    images = digits.test.images[:20]
    script = "return NETWORKS.map(n => arguments[0].map(image => predict(n, image)))"
    shown = np.array(
        browser.execute_script(script, images.reshape(len(images), -1).tolist())
    )
    for probabilities, (name, trained) in zip(shown, runs.items(), strict=True):
        expected = trained.predict(images)
        assert expected.std(axis=0).max() > 1e-3  # the images are told apart
        np.testing.assert_allclose(probabilities, expected, atol=1e-5, err_msg=name)
    assert browser.console() == []


SEVEN = [[80, 60], [200, 60], [120, 230]]
DRAWINGS = {  # strokes in pixels of the 280x280 canvas
    "seven": [SEVEN],
    "small seven": [[[x // 2, y // 2] for x, y in SEVEN]],
    "one": [[[141, 40], [141, 240]]],
    "four": [[[80, 40], [70, 150], [200, 150]], [[180, 60], [180, 250]]],
    "at the corner": [[[0, 0], [120, 10], [20, 160]]],
    "dot": [[[140, 140]]],
}


def test_drawings_are_read_as_photos_of_them(browser: Browser, tmp_path):
    write_page({"mlp": MLP}, tmp_path / "page.html")
    browser.open((tmp_path / "page.html").as_uri())
    for name, strokes in DRAWINGS.items():
        png, pixels = browser.execute_script(
            """
            strokes = arguments[0];
            draw();
            const photo = document.createElement("canvas");
            photo.width = photo.height = 400;  // with a margin
            photo.getContext("2d").drawImage(pad, 60, 60);
            return [photo.toDataURL("image/png").split(",")[1], [...readDrawing(pad)]];
            """,
            strokes,
        )
        expected = read_digit(io.BytesIO(base64.b64decode(png)))
        assert max(pixels) > 200, name
        assert np.corrcoef(pixels, expected.ravel())[0, 1] > 0.94, name
    assert browser.console() == []


def wait_for_prediction(browser: Browser) -> str:
    """Waits until the page shows the last stroke, and returns its status line."""
    return browser.execute_script(
        """
        return new Promise(resolve => (function poll() {
          if (scheduled || drawing) return setTimeout(poll, 20);
          resolve(status.textContent);
        })());
        """
    )


@pytest.mark.parametrize(
    "pointer, width, scheme", [("touch", 360, "dark"), ("mouse", 1000, "light")]
)
def test_a_stroke_shows_probabilities(
    browser: Browser, tmp_path, pointer, width, scheme
):
    names = SETS["fashion_mnist"].class_names
    fashion = dataclasses.replace(
        MLP.record, dataset="fashion_mnist", class_names=names
    )
    other = dataclasses.replace(MLP, record=fashion)
    write_page({"mlp0": MLP, "fashion": other, "third": MLP}, tmp_path / "page.html")
    assert not re.search(r"https?:|src=", (tmp_path / "page.html").read_text())
    browser.emulate(width, 740, scheme)
    browser.open((tmp_path / "page.html").as_uri())
    x, y, side = browser.execute_script(
        "const box = pad.getBoundingClientRect(); return [box.x, box.y, box.width]"
    )
    line = [(x + side / 2, y + side * part) for part in (0.15, 0.4, 0.6, 0.85)]
    browser.drag(line, pointer)
    assert re.fullmatch(r"Predicted in [\d.]+ ms\.", wait_for_prediction(browser))
    seen = browser.execute_script("return [...readDrawing(pad)]")
    [expected] = MLP.predict(np.array(seen, np.uint8).reshape(1, 28, 28))
    texts = "return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)"
    cells = browser.execute_script(texts, "td")
    assert cells == [f"{100 * p:.1f}%" for p in expected for _ in range(3)]
    ink = "seen.getContext('2d').getImageData(0, 0, 28, 28).data"
    assert (
        browser.execute_script(f"return [...{ink}].filter((_, n) => n % 4 === 0)")
        == seen
    )
    best = int(expected.argmax())
    answers = [str(best), names[best], str(best)]
    assert browser.execute_script(texts, ".prediction") == answers
    note = "MLP, test accuracy 97.00%"
    warned = f"{note}; trained on fashion_mnist, so drawings of digits may mean nothing"
    assert browser.execute_script(texts, ".note") == [note, f"{warned} to it", note]
    # On a phone all is visible without scrolling, and there is room to draw.
    assert (
        browser.execute_script("return document.documentElement.scrollWidth") <= width
    )
    assert browser.execute_script("return pad.clientWidth") >= 220
    browser.execute_script("undo.click()")
    assert wait_for_prediction(browser).startswith("Draw one large digit")
    assert browser.execute_script(texts, "td") == [""] * 30
    assert browser.console() == []


def test_names_cannot_end_the_script(tmp_path):
    write_page({"</script><b>": MLP}, tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert text.count("</script>") == text.count("<script") == 3


def test_a_custom_network_has_no_page(tmp_path):
    custom = dataclasses.replace(MLP, config=TrainConfig(model="net.py:Net"))
    with pytest.raises(InputError, match=r"net.py:Net .* is for mlp, lstm"):
        write_page({"run": custom}, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_the_program_writes_the_page_and_opens_it(run_dir: Path, tmp_path):
    page = tmp_path / "new" / "a page.html"
    command = ("experiments.demo", f"--run_dir={run_dir}", f"--out={page}")
    opened = run(*command, BROWSER="echo").stdout.splitlines()
    assert opened == [f"written: {page}, to open in any browser", page.as_uri()]
    assert f'"name": "{run_dir}"' in page.read_text()
    assert run(*command, "--open=false", BROWSER="echo").stdout.count("\n") == 1
