"""Downloads through TFDS, with local servers instead of the data hosts."""

import contextlib
import http.server
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest

from mnist_jax.data import download
from mnist_jax.data.published import FILES

DATA_DIR = os.environ.get("MNIST_JAX_DATA_DIR")


class Proxy(http.server.BaseHTTPRequestHandler):
    """Answers plain HTTP with a login page, and serves `files` through CONNECT."""

    files: Path | None = None
    context: ssl.SSLContext | None = None

    def do_GET(self):
        """Answers like a captive portal, or with the requested file."""
        if self.files is None:
            body = b"<html>please log in</html>"
        else:
            body = (self.files / Path(self.path).name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_CONNECT(self):
        """Acts as the TLS host that the client wants to connect to."""
        self.send_response(200)
        self.end_headers()
        connection = self.context.wrap_socket(self.connection, server_side=True)
        type("Host", (Proxy,), {"files": self.files})(
            connection, self.client_address, self.server
        )
        connection.close()
        self.close_connection = True

    def log_message(self, *args):
        """Logs nothing."""


@contextlib.contextmanager
def serve(handler):
    """Runs a proxy on a free local port and yields its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def use_proxy(monkeypatch, address):
    """Routes all requests of child processes to one address."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, address)
    for name in ("no_proxy", "NO_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_refused_connection_fails_at_once(tmp_path, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: reserves the port
        use_proxy(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(download.DownloadError, match="refused"):
            download.download_files("kmnist", tmp_path, limit=60.0)
    assert time.monotonic() - start < 59  # does not wait for `limit`


@pytest.mark.parametrize(
    "limit, reason", [(3.0, "it took more than 3 s"), (120.0, "timed out|Timeout")]
)
def test_a_silent_network_times_out(tmp_path, monkeypatch, limit, reason):
    with socket.socket() as silent:  # accepts connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        use_proxy(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(download.DownloadError, match=reason):
            download.download_files("kmnist", tmp_path, limit=limit)
    assert 3 <= time.monotonic() - start < 60


def test_the_answer_of_a_captive_portal_is_rejected(tmp_path, monkeypatch):
    with serve(Proxy) as address:
        use_proxy(monkeypatch, address)
        with pytest.raises(download.DownloadError, match="fixing_nonmatchingchecksum"):
            download.download_files("kmnist", tmp_path)
    assert not any((tmp_path / file).exists() for file in FILES.values())


@pytest.mark.skipif(not DATA_DIR, reason="needs MNIST in MNIST_JAX_DATA_DIR")
@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl for a key")
def test_tfds_downloads_the_files_under_their_names(tmp_path, monkeypatch):
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    subject = "/CN=storage.googleapis.com"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
        + ["-keyout", key, "-out", certificate, "-subj", subject]
        + ["-addext", "subjectAltName=DNS:storage.googleapis.com"],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certificate)
    folder = tmp_path / "mnist"
    folder.mkdir()
    folders = (Path(DATA_DIR) / "mnist", Path(DATA_DIR))
    files = next(path for path in folders if (path / FILES["x_train"]).is_file())
    handler = type("Files", (Proxy,), {"files": files, "context": context})
    with serve(handler) as address:
        use_proxy(monkeypatch, address)
        download.download_files("mnist", folder)
    for file in FILES.values():
        assert (folder / file).read_bytes() == (files / file).read_bytes()
