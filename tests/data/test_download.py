"""Downloads through TFDS, with local servers instead of the data hosts."""

import contextlib
import functools
import http.server
import os
import socket
import threading
import time
from pathlib import Path

import pytest

from mnist_jax.data.download import DownloadError, download_files
from mnist_jax.data.published import FILES

DATA_DIR = os.environ.get("MNIST_JAX_DATA_DIR")


class Proxy(http.server.BaseHTTPRequestHandler):
    """Answers each request with a file of a folder, or without one a login page."""

    def __init__(self, *arguments, folder=None):
        self.folder = folder
        super().__init__(*arguments)

    def do_GET(self):
        """Answers a request."""
        body = b"<html>please log in</html>"
        if self.folder:
            body = (self.folder / Path(self.path).name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        """Logs nothing."""


@contextlib.contextmanager
def serve(folder=None):
    """Runs a proxy on a free local port and yields the port."""
    handler = functools.partial(Proxy, folder=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def use_proxy(monkeypatch, port):
    """Routes all requests of child processes to a local port."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "listens, limit, reason",
    [
        (False, 60.0, "refused"),
        (True, 3.0, "it took more than 3 s"),
        (True, 120.0, "timed out|Timeout"),
    ],
)
def test_a_refusing_or_silent_network_ends_a_download(
    tmp_path, monkeypatch, listens, limit, reason
):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()  # accepts connections and never answers
        use_proxy(monkeypatch, server.getsockname()[1])
        start = time.monotonic()
        with pytest.raises(DownloadError, match=reason):
            download_files("kmnist", tmp_path, limit=limit)
    assert time.monotonic() - start < 60


def test_the_answer_of_a_captive_portal_is_rejected(tmp_path, monkeypatch):
    with serve() as port:
        use_proxy(monkeypatch, port)
        with pytest.raises(DownloadError, match="fixing_nonmatchingchecksum"):
            download_files("kmnist", tmp_path)
    assert not any((tmp_path / file).exists() for file in FILES.values())


def test_tfds_downloads_the_files_under_their_names(tmp_path, monkeypatch):
    files = Path(DATA_DIR or "missing").parent / "fashion-mnist"
    if not files.is_dir():
        pytest.skip("needs fashion-mnist beside the folder MNIST_JAX_DATA_DIR")
    with serve(files) as port:
        use_proxy(monkeypatch, port)
        download_files("fashion_mnist", tmp_path)
    for file in FILES.values():
        assert (tmp_path / file).read_bytes() == (files / file).read_bytes()
