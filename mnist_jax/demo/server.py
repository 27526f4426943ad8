"""A page to draw a digit on, served to this machine alone."""

import json
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, NamedTuple

import numpy as np

from mnist_jax.data.user_images import digit_from_bytes
from mnist_jax.errors import InputError

HOST = "127.0.0.1"
# The page's drawing takes about 5,000 bytes.
MAX_BODY = 1_000_000

# What the page may do: run its own script and ask this server.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)


class Predictor(NamedTuple):
    """A trained network as the page shows it."""

    name: str
    note: str  # a few words below the name
    predict: Callable[[np.ndarray], np.ndarray]  # [1,28,28] uint8 -> [1,10]


def make_server(predictors: Sequence[Predictor], port: int) -> ThreadingHTTPServer:
    """Returns a server of the page, bound to a port but not yet serving.

    Args:
        predictors: in the order of the page's columns.
        port: of 127.0.0.1; 0 takes a free one, see `server_port` of the server.

    Raises:
        InputError: the port cannot be had.
    """
    lock = threading.Lock()
    page = resources.files("mnist_jax.demo").joinpath("page.html").read_bytes()
    models = [{"name": each.name, "note": each.note} for each in predictors]
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
            f"--port={port} cannot be had: {reason}; give another from 1024 to 65535, "
            "or 0 for any that is free"
        ) from error


def _answer(
    predictors: Sequence[Predictor], lock: threading.Lock, content: bytes
) -> dict[str, Any]:
    """Returns what all networks say of a drawing, as JSON values."""
    # One drawing at a time: they would only share the same cores, and decoding sets
    # the process's warnings aside.
    with lock:
        start = time.perf_counter()
        digit = digit_from_bytes(content, "the drawing")
        models = [
            {"name": each.name, "probabilities": each.predict(digit[None])[0].tolist()}
            for each in predictors
        ]
        milliseconds = 1e3 * (time.perf_counter() - start)
    return {
        "models": models,
        "seen": digit.ravel().tolist(),
        "milliseconds": milliseconds,
    }


class _Server(ThreadingHTTPServer):
    def server_bind(self) -> None:
        # The base class asks the name service for the host's name, which may take long.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the browser went away
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection; every refusal is one sentence of plain text."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mnist_jax", ""
    error_content_type = "text/plain; charset=utf-8"
    error_message_format = "%(explain)s\n"
    timeout = 30  # seconds for a client that promises more than it sends
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
        """Answers with the page or the names of the networks."""
        if not self._host_is_ours():
            return
        found = self._answers.get(self.path.split("?")[0])
        if found is None:
            self._refuse(
                HTTPStatus.NOT_FOUND, "there is nothing here; the page is at /"
            )
        else:
            self._send(*found)

    def do_POST(self) -> None:
        """Answers a drawing with all networks' probabilities."""
        if not self._host_is_ours():
            return
        if self.path != "/predict":
            self._refuse(HTTPStatus.NOT_FOUND, "drawings are sent to /predict")
            return
        kind = self.headers.get("Content-Type", "none")
        if kind not in ("image/png", "image/jpeg"):
            # Also what no other site's page can make a browser send unasked.
            self._refuse(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"the Content-Type must be image/png or image/jpeg; got {kind}",
            )
            return
        content = self._read_body()
        if content is None:
            return
        try:
            answer = self._predict(content)
        except InputError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, f"{error}.")
        else:
            self._send(json.dumps(answer).encode(), "application/json")

    def _read_body(self) -> bytes | None:
        """Reads the body if its length is told and allowed; else refuses."""
        length = self.headers.get("Content-Length")
        if length is None or "Transfer-Encoding" in self.headers:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "the Content-Length is missing")
        elif not (length.isascii() and length.isdigit()):
            self._refuse(
                HTTPStatus.BAD_REQUEST,
                f"the Content-Length must be a whole number; got {length}",
            )
        elif len(length) > 12 or int(length) > MAX_BODY:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"a drawing may have at most {MAX_BODY:,} bytes; got {length}",
            )
        else:
            content = self.rfile.read(int(length))
            if len(content) == int(length):
                return content
            self._refuse(
                HTTPStatus.BAD_REQUEST,
                f"the body ended after {len(content)} of {length} bytes",
            )
        return None

    def _host_is_ours(self) -> bool:
        """Refuses a request under another name than this machine's own.

        Another site whose name is made to point to this machine would otherwise count,
        to a browser, as the origin of the page.
        """
        port = self.connection.getsockname()[1]
        allowed = (f"{HOST}:{port}", f"localhost:{port}")
        given = self.headers.get("Host", "none")
        if given in allowed:
            return True
        self._refuse(
            HTTPStatus.FORBIDDEN,
            f"the Host must be {' or '.join(allowed)}; got {given}",
        )
        return False

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        # Ends the connection too: a body may lie unread in it.
        self.send_error(status, explain=sentence)

    def end_headers(self) -> None:
        """Adds the headers that every answer has."""
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing: the page tells its reader what there is to know."""
