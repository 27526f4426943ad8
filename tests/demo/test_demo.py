"""Tests of the drawing demo: the server over HTTP and the page in a browser."""

import http.client
import io
import json
import re
import shutil
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
    """Runs a server inside a `with` block and yields its port."""
    with make_server(predictors, port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def always_3(name: str, note: str) -> Predictor:
    """Returns a network that always predicts 3."""
    return Predictor(name, note, lambda images: np.eye(10)[[3]])


@pytest.fixture(scope="module")
def port(run_dir: Path) -> Iterator[int]:
    """The port of a server with two networks: a trained one and one for `always_3`."""
    with serve(load_predictor(run_dir, "mlp0"), always_3("three", "always 3")) as port:
        yield port


def drawing(lines: tuple[int, ...] = (140,)) -> bytes:
    """Returns a PNG of vertical lines."""
    image = Image.new("L", (280, 280), 255)
    for x in lines:
        ImageDraw.Draw(image).line([x, 40, x, 240], 0, 22)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def ask(
    port: int, method: str, path: str, body: bytes | None = None, **headers: str | None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Sends a request with exactly these headers; returns status, headers, body."""
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
    """Sends a drawing like the page does, with some headers replaced."""
    usual = {"Content_Type": "image/png", "Content_Length": str(len(body))}
    return ask(port, "POST", "/predict", body, **{**usual, **headers})


def test_every_network_classifies_a_drawing(port: int):
    status, headers, body = send(port, drawing())
    answer = json.loads(body)
    assert status == 200 and headers["Content-Type"] == "application/json"
    assert [model["name"] for model in answer["models"]] == ["mlp0", "three"]
    for model in answer["models"]:
        assert len(model["probabilities"]) == 10
        assert sum(model["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert len(answer["seen"]) == 784 and max(answer["seen"]) == 255
    assert answer["milliseconds"] > 0 and answer["warning"] == ""


def test_the_page_is_self_contained(port: int):
    status, headers, body = ask(port, "GET", "/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert not re.search(rb"https?:|//[a-z]", body)
    names = json.loads(ask(port, "GET", "/models")[2])
    assert [model["name"] for model in names] == ["mlp0", "three"]
    assert re.fullmatch(r"MLP, test accuracy [\d.]+%", names[0]["note"])


PNG = {"Content_Type": "image/png"}
BAD_REQUESTS = {
    "no length": (dict(Content_Length=None), 411, "Content-Length is missing"),
    "chunks": (dict(Transfer_Encoding="chunked"), 411, "Content-Length is missing"),
    "length in words": (dict(Content_Length="ten"), 400, "integer; got ten"),
    "negative length": (dict(Content_Length="-1"), 400, "non-negative integer; got -1"),
    "too long": (dict(Content_Length=str(MAX_BODY + 1)), 413, "1,000,000 bytes"),
    "absurdly long": (dict(Content_Length="9" * 5_000), 413, "1,000,000 bytes"),
    "another type": (dict(Content_Type="text/plain"), 415, "got text/plain"),
    "DNS rebinding": (dict(Host="evil.example:80"), 403, "got evil.example:80"),
    "rebinding of an address": (dict(Host="127.0.0.1.evil.example"), 403, "IP address"),
    "no host": (dict(Host=None), 403, "got none"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_requests_get_one_sentence_without_reading_the_body(port: int, case):
    headers, expected, message = BAD_REQUESTS[case]
    status, answered, body = send(port, b"", **headers)
    assert status == expected and message in body.decode()
    assert answered["Content-Type"].startswith("text/plain")
    assert body.count(b"\n") == 1


def test_a_network_of_other_data_shows_its_classes_and_a_note(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path, dirs_exist_ok=True)
    record = json.loads((tmp_path / "record.json").read_text())
    changed = json.dumps(record | {"dataset": "fashion_mnist"})
    (tmp_path / "record.json").write_text(changed)
    predictor = load_predictor(tmp_path, "fashion")
    with serve(predictor) as port:
        [model] = json.loads(ask(port, "GET", "/models")[2])
        answer = json.loads(send(port, drawing(lines=(70, 210)))[2])
    assert model["classes"][9] == "Ankle boot"
    assert "trained on fashion_mnist, so drawings of digits may mean" in model["note"]
    assert "the drawing may show several digits" in answer["warning"]


def test_invalid_drawings_are_rejected(port: int):
    status, _, body = send(port, drawing(lines=()))
    assert status == 422 and b"the drawing is blank" in body
    status, _, body = send(port, b"<script>")
    assert status == 422 and b"neither a PNG nor a JPEG" in body


@pytest.mark.parametrize(
    "path", ["/demo.py", "/../pyproject.toml", "/%2e%2e/pyproject.toml", "//etc/passwd"]
)
def test_no_path_serves_a_file(port: int, path):
    assert ask(port, "GET", path)[0] == 404
    assert ask(port, "POST", path, b"", **PNG, Content_Length="0")[0] == 404


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "192.168.0.7"])
def test_the_server_may_be_behind_a_tunnel(port: int, host):
    for given in (host, f"{host}:{port}", f"{host}:9000"):
        assert ask(port, "GET", "/", Host=given)[0] == 200
    for evil in ("evil.example", f"{host}.evil.example:{port}", f"evil@{host}", ""):
        assert ask(port, "GET", "/", Host=evil)[0] == 403


@pytest.mark.parametrize("wrong", [99_999, -1])
def test_an_invalid_port_is_an_input_error(wrong):
    with pytest.raises(InputError, match=f"cannot bind to --port={wrong}"):
        make_server([], wrong)


def test_a_port_in_use_is_an_input_error(port: int):
    with pytest.raises(InputError, match=f"cannot bind to --port={port}.*in use"):
        make_server([], port)


def test_the_program_serves_until_interrupted(run_dir: Path):
    # If the tests run as a background job, child processes inherit an ignored SIGINT.
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
        # Runs with the same name are listed with their paths.
        assert [model["name"] for model in names] == [str(run_dir)] * 2
        # The server listens on 127.0.0.1 only.
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", found[1])):
            pass
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors == ""


def stroke(browser: Browser) -> list[tuple[float, float]]:
    """Returns the points of a vertical line on the page's canvas."""
    script = "const b = document.getElementById('pad').getBoundingClientRect();"
    x, y, side = browser.run(script + "return [b.x, b.y, b.width]")
    return [(x + side / 2, y + side * fraction) for fraction in (0.15, 0.4, 0.6, 0.85)]


def predicted(browser: Browser) -> list[list[str]]:
    """Waits for all responses and returns the text of the table's cells by row."""
    return browser.run(
        """
        return new Promise((resolve, reject) => {
          const deadline = performance.now() + 60000;
          (function poll() {
            const text = document.getElementById("status").textContent;
            if (!requesting && !changed && text.includes(" ms.")) {
              resolve([...document.querySelectorAll("tbody tr")].map(
                row => [...row.querySelectorAll("td")].map(cell => cell.textContent)));
            } else if (performance.now() > deadline) {
              reject(new Error("no response after 60 s; page status: " + text));
            } else {
              setTimeout(poll, 20);
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
    rows = predicted(browser)
    assert len(rows) == 10 and all(len(row) == 2 for row in rows)
    assert [row[1] for row in rows] == ["0.0%"] * 3 + ["100.0%"] + ["0.0%"] * 6
    assert sum(float(row[0][:-1]) for row in rows) == pytest.approx(100, abs=0.6)
    predictions = browser.run(
        "return [...document.querySelectorAll('.prediction')].map(g => g.textContent)"
    )
    assert predictions[1] == "3" and predictions[0] in "0123456789"
    ink = "seen.getContext('2d').getImageData(0, 0, 28, 28).data"
    assert browser.run(f"return {ink}.filter((v, n) => n % 4 == 3 && v > 200).length")
    # Nothing overflows the page, even on a phone.
    scroll_width = "document.documentElement.scrollWidth"
    assert browser.run(f"return {scroll_width}") <= width
    browser.run("document.getElementById('clear').click()")
    assert browser.run("return document.querySelector('td').textContent") == ""
    assert browser.console() == []


def test_a_phone_shows_three_networks_without_scrolling(browser: Browser):
    browser.resize(360, 740)
    models = [always_3(f"lstm{n}", "LSTM, test accuracy 98.86%") for n in range(3)]
    with serve(*models) as port:
        browser.open(f"http://127.0.0.1:{port}/")
        browser.drag(stroke(browser), "touch")
        assert len(predicted(browser)[0]) == 3
    sizes = "const all = document.documentElement; return [all.scrollWidth, "
    width, height = browser.run(sizes + "all.scrollHeight]")
    assert width <= 360 and height <= 740
    assert browser.run("return pad.clientWidth") >= 220  # large enough to draw on
