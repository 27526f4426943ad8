"""The page to draw on: the server's manners over HTTP, the page in a real browser."""

import http.client
import io
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import Browser
from PIL import Image, ImageDraw

from experiments.demo import load_predictor
from mnist_jax.config import TrainConfig
from mnist_jax.data.types import Dataset
from mnist_jax.demo.server import MAX_BODY, Predictor, make_server
from mnist_jax.errors import InputError
from mnist_jax.training.experiment import prepare
from mnist_jax.training.run_dir import fit_into

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run_dir(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a small MLP."""
    folder = tmp_path_factory.mktemp("mlp0")
    config = TrainConfig(model="mlp", hidden=(16,), dataset="digits", epochs=2)
    fit_into(prepare(config, digits), {0: folder})
    return folder


@contextmanager
def serve(*predictors: Predictor) -> Iterator[int]:
    """Runs a server of networks within a `with` block; gives its port."""
    with make_server(predictors, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def says_3(name: str, note: str) -> Predictor:
    """Returns a network that knows only 3."""
    return Predictor(name, note, lambda images: np.eye(10)[[3]])


@pytest.fixture(scope="module")
def port(run_dir: Path) -> Iterator[int]:
    """Where a server of two networks listens: a real one, and one that knows only 3."""
    with serve(
        load_predictor(run_dir, "mlp0", None), says_3("three", "says 3")
    ) as port:
        yield port


def drawing(white: bool = False) -> bytes:
    """Returns a PNG of a vertical line, or of nothing."""
    page = Image.new("L", (280, 280), 255)
    if not white:
        ImageDraw.Draw(page).line([140, 40, 140, 240], 0, 22)
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


def ask(
    port: int, method: str, path: str, body: bytes | None = None, **headers: str | None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Sends a request with exactly these headers: status, headers and body."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as client:
        client.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        given = {"Host": f"127.0.0.1:{port}", **headers}
        for name, value in given.items():
            if value is not None:
                client.putheader(name.replace("_", "-"), value)
        client.endheaders(body)
        response = client.getresponse()
        return response.status, response.headers, response.read()


def send(port: int, body: bytes, **headers: str | None):
    """Sends a drawing as the page does, but for these headers."""
    usual = {"Content_Type": "image/png", "Content_Length": str(len(body))}
    return ask(port, "POST", "/predict", body, **{**usual, **headers})


def test_a_drawing_is_answered_by_every_network(port: int):
    status, headers, body = send(port, drawing())
    answer = json.loads(body)
    assert status == 200 and headers["Content-Type"] == "application/json"
    assert [model["name"] for model in answer["models"]] == ["mlp0", "three"]
    for model in answer["models"]:
        assert len(model["probabilities"]) == 10
        assert sum(model["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert len(answer["seen"]) == 784 and max(answer["seen"]) == 255
    assert answer["milliseconds"] > 0


def test_the_page_needs_nothing_from_elsewhere(port: int):
    status, headers, body = ask(port, "GET", "/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not re.search(rb"https?:|//[a-z]", body)
    names = json.loads(ask(port, "GET", "/models")[2])
    assert [model["name"] for model in names] == ["mlp0", "three"]
    assert re.fullmatch(r"MLP, test accuracy [\d.]+%", names[0]["note"])


PNG = {"Content_Type": "image/png"}
REFUSED = {
    "no length": (dict(Content_Length=None), 411, "Content-Length is missing"),
    "chunks": (dict(Transfer_Encoding="chunked"), 411, "Content-Length is missing"),
    "length in words": (dict(Content_Length="ten"), 400, "whole number; got ten"),
    "negative length": (dict(Content_Length="-1"), 400, "whole number; got -1"),
    "too long": (dict(Content_Length=str(MAX_BODY + 1)), 413, "1,000,000 bytes"),
    "absurdly long": (dict(Content_Length="9" * 5_000), 413, "1,000,000 bytes"),
    "another type": (dict(Content_Type="text/plain"), 415, "got text/plain"),
    "rebound name": (dict(Host="evil.example:80"), 403, "got evil.example:80"),
    "no host": (dict(Host=None), 403, "got none"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_requests_are_refused_unread_in_one_sentence(port: int, case):
    headers, expected, sentence = REFUSED[case]
    status, answered, body = send(port, b"", **headers)
    assert status == expected and sentence in body.decode()
    assert answered["Content-Type"].startswith("text/plain")
    assert body.count(b"\n") == 1


def test_bodies_that_are_no_drawing_are_refused(port: int):
    status, _, body = send(port, drawing(white=True))
    assert status == 422 and b"the drawing is blank" in body
    status, _, body = send(port, b"<script>")
    assert status == 422 and b"neither a PNG nor a JPEG" in body


@pytest.mark.parametrize(
    "path", ["/demo.py", "/../pyproject.toml", "/%2e%2e/pyproject.toml", "//etc/passwd"]
)
def test_no_path_leads_to_a_file(port: int, path):
    assert ask(port, "GET", path)[0] == 404
    assert ask(port, "POST", path, b"", **PNG, Content_Length="0")[0] == 404


def test_another_name_gets_no_page_and_localhost_does(port: int):
    assert ask(port, "GET", "/", Host="evil.example")[0] == 403
    assert ask(port, "GET", "/", Host=f"localhost:{port}")[0] == 200


@pytest.mark.parametrize("wrong", [99_999, -1])
def test_a_port_that_cannot_be_had_is_an_input_error(wrong):
    with pytest.raises(InputError, match=f"--port={wrong} cannot be had"):
        make_server([], wrong)


def test_a_port_in_use_is_an_input_error(port: int):
    with pytest.raises(InputError, match=f"--port={port} cannot be had.*in use"):
        make_server([], port)


def test_the_program_serves_until_it_is_interrupted(run_dir: Path):
    # Where the tests run in the background, their children ignore an interrupt.
    code = (
        "import runpy, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "runpy.run_module('experiments.demo', run_name='__main__', alter_sys=True)\n"
    )
    flags = [f"--run_dir={run_dir}", f"--run_dir={run_dir}", "--port=0"]
    with subprocess.Popen(
        [sys.executable, "-c", code, *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127.0.0.1:(\d+)/", line)
        assert found, line + process.communicate()[1]
        names = json.loads(ask(int(found[1]), "GET", "/models")[2])
        # Two runs of one name are told apart by their paths.
        assert [model["name"] for model in names] == [str(run_dir)] * 2
        # Not on any address but this machine's own.
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", found[1])):
            pass
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == ""


def stroke(browser: Browser) -> list[tuple[float, float]]:
    """Returns points of a vertical line down the page's canvas."""
    script = "const b = document.getElementById('pad').getBoundingClientRect();"
    x, y, side = browser.run(script + "return [b.x, b.y, b.width]")
    return [(x + side / 2, y + side * part) for part in (0.15, 0.4, 0.6, 0.85)]


def answered(browser: Browser) -> list[list[str]]:
    """Waits until all requests are answered; returns the text of each row's cells."""
    return browser.run(
        """
        return new Promise((resolve, reject) => {
          const until = performance.now() + 60000;
          (function look() {
            const words = document.getElementById("status").textContent;
            if (!asking && !changed && words.includes(" ms.")) {
              resolve([...document.querySelectorAll("tbody tr")].map(
                row => [...row.querySelectorAll("td")].map(cell => cell.textContent)));
            } else if (performance.now() > until) {
              reject(new Error("no answer after 60 s; the page says: " + words));
            } else {
              setTimeout(look, 20);
            }
          })();
        });
        """
    )


@pytest.mark.parametrize("pointer", ["mouse", "touch"])
@pytest.mark.parametrize("width, dark", [(360, True), (1000, False)])
def test_a_stroke_shows_probabilities(browser: Browser, port, pointer, width, dark):
    browser.resize(width, 740)
    browser.prefer_dark(dark)
    browser.open(f"http://127.0.0.1:{port}/")
    browser.drag(stroke(browser), pointer)
    rows = answered(browser)
    assert len(rows) == 10 and all(len(row) == 2 for row in rows)
    assert [row[1] for row in rows] == ["0.0 %"] * 3 + ["100.0 %"] + ["0.0 %"] * 6
    assert sum(float(row[0][:-2]) for row in rows) == pytest.approx(100, abs=0.6)
    guesses = browser.run(
        "return [...document.querySelectorAll('.guess')].map(g => g.textContent)"
    )
    assert guesses[1] == "3" and guesses[0] in "0123456789"
    ink = "seen.getContext('2d').getImageData(0, 0, 28, 28).data"
    assert browser.run(f"return {ink}.filter((v, n) => n % 4 == 3 && v > 200).length")
    # Nothing sticks out of the page, also on a phone.
    wide = "document.documentElement.scrollWidth"
    assert browser.run(f"return {wide}") <= width
    browser.run("document.getElementById('clear').click()")
    assert browser.run("return document.querySelector('td').textContent") == ""
    assert browser.console() == []


def test_a_phone_shows_three_networks_without_scrolling(browser: Browser):
    browser.resize(360, 740)
    models = [says_3(f"lstm{n}", "LSTM, test accuracy 98.86%") for n in range(3)]
    with serve(*models) as port:
        browser.open(f"http://127.0.0.1:{port}/")
        browser.drag(stroke(browser), "touch")
        assert len(answered(browser)[0]) == 3
    sizes = "const all = document.documentElement; return [all.scrollWidth, "
    width, height = browser.run(sizes + "all.scrollHeight]")
    assert width <= 360 and height <= 740
    assert browser.run("return pad.clientWidth") >= 220  # still large enough to draw on
