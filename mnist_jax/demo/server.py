"""Web server for the drawing demo, reachable from this machine only."""

import ipaddress
import json
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import numpy as np

from mnist_jax.data.types import DIGITS
from mnist_jax.data.user_images import digit_from_bytes
from mnist_jax.demo.page import build_page, read_source
from mnist_jax.errors import InputError

HOST = "127.0.0.1"
# In bytes; a drawing sent by the page has about 5,000.
MAX_BODY = 1_000_000

# The page may only run its inline script and send requests to this server.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class Predictor(NamedTuple):
    """A trained network and its labels on the page."""

    name: str
    note: str  # shown below the name
    predict: Callable[[np.ndarray], np.ndarray]  # [1,28,28] uint8 -> [1,10]
    classes: Sequence[str] = DIGITS


def make_server(predictors: Sequence[Predictor], port: int) -> ThreadingHTTPServer:
    """Returns a server for the page that is bound to a port but not yet serving.

    Args:
        predictors: the networks, in the order of the page's columns.
        port: port on 127.0.0.1; 0 picks a free one, see the server's `server_port`.

    Raises:
        InputError: the port is not available.
    """
    lock = threading.Lock()
    page = build_page([read_source("server.js")]).encode()
    models = [
        {"name": each.name, "note": each.note, "classes": each.classes}
        for each in predictors
    ]
    answers = {
        "/": (page, "text/html; charset=utf-8"),
        "/models": (json.dumps(models).encode(), "application/json"),
    }
    handler = partial(_Handler, answers, partial(_answer, predictors, lock))
    try:
        return _Server((HOST, port), handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"cannot bind to --port={port}: {reason}; choose another from 1024 to "
            "65535, or 0 for any free port"
        ) from error


def _answer(
    predictors: Sequence[Predictor], lock: threading.Lock, content: bytes
) -> dict[str, Any]:
    """Returns the response to a drawing, as JSON values."""
    # One drawing at a time: parallel ones would share the same cores, and decoding
    # changes the process-wide warning filters.
    with lock:
        start = time.perf_counter()
        digit = digit_from_bytes(content, "the drawing", paper=False)
        images = digit.pixels[None]
        models = [
            {"name": each.name, "probabilities": each.predict(images)[0].tolist()}
            for each in predictors
        ]
        milliseconds = 1e3 * (time.perf_counter() - start)
    return {
        "models": models,
        "seen": digit.pixels.ravel().tolist(),
        "warning": digit.warning,
        "milliseconds": milliseconds,
    }


def _is_address(host: str) -> bool:
    """Returns whether a Host header is localhost or an IP address, with any port.

    >>> [_is_address(h) for h in ("localhost:9000", "[::1]", "127.0.0.1.evil.example")]
    [True, True, False]
    """
    name, _, port = host.rpartition(":")
    if not (port.isascii() and port.isdigit()):
        name = host
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


class _Server(ThreadingHTTPServer):
    def server_bind(self) -> None:
        # The base class looks up the host name, which can be slow.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the client disconnected
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Handles one connection; every error response is one sentence of plain text."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mnist_jax", ""
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(explain)s\n"
    timeout = 30  # seconds; a client may send less than its Content-Length
    disable_nagle_algorithm = True

    def __init__(
        self,
        answers: dict[str, tuple[bytes, str]],
        predict: Callable[[bytes], dict[str, Any]],
        *connection: Any,
    ) -> None:
        self._answers, self._predict = answers, predict
        super().__init__(*connection)

    def do_GET(self) -> None:
        """Sends the page, or the names of the networks."""
        if not self._host_is_ours():
            return
        found = self._answers.get(self.path.split("?")[0])
        if found is None:
            self._reject(HTTPStatus.NOT_FOUND, "not found; the page is at /")
        else:
            self._send(*found)

    def do_POST(self) -> None:
        """Sends the probabilities of all networks for the posted drawing."""
        if not self._host_is_ours():
            return
        if self.path != "/predict":
            self._reject(HTTPStatus.NOT_FOUND, "not found; post drawings to /predict")
            return
        content_type = self.headers.get("Content-Type", "none")
        if content_type not in ("image/png", "image/jpeg"):
            # These types also keep other sites out: browsers send them across origins
            # only after a preflight request.
            self._reject(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"the Content-Type must be image/png or image/jpeg; got {content_type}",
            )
            return
        content = self._read_body()
        if content is None:
            return
        try:
            answer = self._predict(content)
        except InputError as error:
            self._reject(HTTPStatus.UNPROCESSABLE_ENTITY, f"{error}.")
        else:
            self._send(json.dumps(answer).encode(), "application/json")

    def _read_body(self) -> bytes | None:
        """Returns the body, or sends an error and returns None for a bad length."""
        length = self.headers.get("Content-Length")
        if length is None or "Transfer-Encoding" in self.headers:
            self._reject(HTTPStatus.LENGTH_REQUIRED, "the Content-Length is missing")
        elif not (length.isascii() and length.isdigit()):
            self._reject(
                HTTPStatus.BAD_REQUEST,
                f"the Content-Length must be a non-negative integer; got {length}",
            )
        elif len(length) > 12 or int(length) > MAX_BODY:
            self._reject(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"a drawing must have at most {MAX_BODY:,} bytes; got {length}",
            )
        else:
            content = self.rfile.read(int(length))
            if len(content) == int(length):
                return content
            self._reject(
                HTTPStatus.BAD_REQUEST,
                f"the body ended after {len(content)} of {length} bytes",
            )
        return None

    def _host_is_ours(self) -> bool:
        """Returns whether the Host header names this server; if not, sends an error.

        Prevents DNS rebinding: a browser would treat another site whose name resolves
        to this machine as the origin of the page. An address resolves to nothing, and
        its port may be that of a tunnel or proxy.
        """
        given = self.headers.get("Host", "none")
        if _is_address(given):
            return True
        self._reject(
            HTTPStatus.FORBIDDEN,
            f"the Host must be localhost or an IP address, with any port; got {given}",
        )
        return False

    def _send(self, content: bytes, content_type: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _reject(self, status: HTTPStatus, message: str) -> None:
        # send_error also closes the connection, which may still hold an unread body.
        self.send_error(status, explain=message)

    def end_headers(self) -> None:
        """Adds the headers common to all responses."""
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Logs nothing: the page shows all errors."""
