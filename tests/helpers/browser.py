"""Runs Chromium over the WebDriver protocol, for tests of web pages.

The few commands needed are plain HTTP with JSON, so no package is required.
https://www.w3.org/TR/webdriver2/
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

DRIVERS = ("chromedriver", "chromium.chromedriver")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_programs() -> tuple[str, str] | None:
    """Returns the paths of a driver and a browser, or None if either is missing."""
    driver = next(filter(None, map(shutil.which, DRIVERS)), None)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    return (driver, browser) if driver and browser else None


class Browser:
    """A headless Chromium window."""

    def __init__(self, port: int, session: str) -> None:
        self._port, self._session = port, session

    def _post(self, path: str, **body: Any) -> Any:
        return send(self._port, "POST", f"/session/{self._session}{path}", body)

    def open(self, url: str) -> None:
        """Loads a page, waits for its load event, and discards older console output."""
        self.console()
        self._post("/url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs a function body in JavaScript; returns its value, awaiting a promise."""
        return self._post("/execute/sync", script=script, args=list(arguments))

    def console(self) -> list[str]:
        """Returns the console's errors and warnings since the last call.

        They include failed requests and uncaught exceptions.
        """
        entries = self._post("/se/log", type="browser")
        levels = ("SEVERE", "WARNING")
        return [entry["message"] for entry in entries if entry["level"] in levels]

    def resize(self, width: int, height: int) -> None:
        """Sets the viewport size in CSS pixels, also below the minimum of a window."""
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        command = "Emulation.setDeviceMetricsOverride"
        self._post("/goog/cdp/execute", cmd=command, params=size)

    def prefer_dark(self, dark: bool) -> None:
        """Sets the preferred color scheme to dark or light."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        command, media = "Emulation.setEmulatedMedia", dict(features=[scheme])
        self._post("/goog/cdp/execute", cmd=command, params=media)

    def drag(self, points: Sequence[tuple[float, float]], pointer: str) -> None:
        """Draws a line with a pressed "mouse", "touch" or "pen".

        Its points are in CSS pixels from the viewport's top left corner.
        """
        moves = [
            {"type": "pointerMove", "duration": 10, "x": round(x), "y": round(y)}
            for x, y in points
        ]
        down, up = {"type": "pointerDown", "button": 0}, {"type": "pointerUp"}
        device = {
            "type": "pointer",
            "id": pointer,
            "parameters": {"pointerType": pointer},
            "actions": [moves[0], down, *moves[1:], {**up, "button": 0}],
        }
        self._post("/actions", actions=[device])


def send(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Sends a command to the driver and returns its result."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    with contextlib.closing(connection):
        connection.request(method, path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        value = json.loads(response.read())["value"]
    if response.status != 200:
        raise RuntimeError(f"{method} {path}: {value['error']}: {value['message']}")
    return value


@contextlib.contextmanager
def open_browser(driver: str, browser: str) -> Iterator[Browser]:
    """Starts a browser with a temporary profile, and closes it on exit."""
    arguments = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")  # as root, Chromium needs this flag
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
        subprocess.Popen(
            [driver, "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process,
    ):
        try:
            port = _port_of(process)
            arguments.append(f"--user-data-dir={profile}")
            options = {"binary": browser, "args": arguments}
            capabilities = {
                "browserName": "chrome",
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL"},
                "timeouts": {"script": 120_000, "pageLoad": 120_000},  # milliseconds
            }
            body = {"capabilities": {"alwaysMatch": capabilities}}
            session = send(port, "POST", "/session", body)["sessionId"]
            try:
                yield Browser(port, session)
            finally:
                send(port, "DELETE", f"/session/{session}")
        finally:
            process.terminate()


def _port_of(process: subprocess.Popen[str]) -> int:
    """Returns the port that the driver prints at startup."""
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"started successfully on port (\d+)", line):
            return int(found[1])
    raise RuntimeError("the driver exited before it printed its port")
