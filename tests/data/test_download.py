"""Downloads through TFDS, with local servers instead of the data hosts."""

import functools
import http.server
import os
import socket
import threading
from pathlib import Path

import pytest

from mnist_jax.data.download import DownloadError, download_files
from mnist_jax.data.published import FILES

DATA_DIR = os.environ.get("MNIST_JAX_DATA_DIR")


class Proxy(http.server.SimpleHTTPRequestHandler):
    """Answers a request for any URL with the file of its name in a folder."""

    def translate_path(self, path: str) -> str:
        return str(Path(self.directory) / Path(path).name)


def use_proxy(monkeypatch, port):
    """Routes all requests of child processes to a local port."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "listens, limits, reason",
    [
        (False, {}, "refused"),
        (True, {"limit": 1.0}, "it took more than 1 s"),
        (True, {"silence": 0.5}, "timed out|Timeout"),
    ],
)
def test_a_refusing_or_silent_network_ends_a_download(
    tmp_path, monkeypatch, listens, limits, reason
):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listens:
            server.listen()  # accepts connections and never answers
        use_proxy(monkeypatch, server.getsockname()[1])
        with pytest.raises(DownloadError, match=reason):
            download_files("kmnist", tmp_path, **limits)


def test_tfds_downloads_and_verifies_the_files(tmp_path, monkeypatch):
    files = Path(DATA_DIR or "missing").parent / "fashion-mnist"
    if not files.is_dir():
        pytest.skip("needs fashion-mnist beside the folder MNIST_JAX_DATA_DIR")
    handler = functools.partial(Proxy, directory=files)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        use_proxy(monkeypatch, server.server_port)
        download_files("fashion_mnist", tmp_path)
        with pytest.raises(DownloadError, match="fixing_nonmatchingchecksum"):
            download_files("kmnist", tmp_path / "other")  # files of the same names
        server.shutdown()
    for file in FILES.values():
        assert (tmp_path / file).read_bytes() == (files / file).read_bytes()
