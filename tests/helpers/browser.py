"""A fixture for tests of web pages: Chromium over the WebDriver protocol.

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
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

DRIVERS = ("chromedriver", "chromium.chromedriver")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Browser:
    """A headless Chromium window, opened by the driver that listens at a port."""

    def __init__(self, port: int, **capabilities: Any) -> None:
        self._port, self._session = port, ""
        opened = self._send("", capabilities={"alwaysMatch": capabilities})
        self._session = f"/{opened['sessionId']}"

    def _send(self, path: str, method: str = "POST", **body: Any) -> Any:
        """Sends a command to the driver and returns its result."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        with contextlib.closing(connection):
            connection.request(
                method, f"/session{self._session}{path}", json.dumps(body)
            )
            response = connection.getresponse()
            value = json.loads(response.read())["value"]
        if response.status != 200:
            raise RuntimeError(f"{method} {path}: {value['error']}: {value['message']}")
        return value

    def close(self) -> None:
        self._send("", "DELETE")

    def open(self, url: str) -> None:
        """Loads a page, waits for its load event, and discards older console output."""
        self.console()
        self._send("/url", url=url)

    def run(self, script: str, *arguments: Any) -> Any:
        """Runs a function body in JavaScript; returns its value, awaiting a promise."""
        return self._send("/execute/sync", script=script, args=list(arguments))

    def console(self) -> list[str]:
        """Returns the console's errors and warnings since the last call.

        They include failed requests and uncaught exceptions.
        """
        entries = self._send("/se/log", type="browser")
        levels = ("SEVERE", "WARNING")
        return [entry["message"] for entry in entries if entry["level"] in levels]

    def emulate(self, width: int, height: int, color_scheme: str = "light") -> None:
        """Sets the viewport's size in CSS pixels and the preferred color scheme."""
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": color_scheme}
        for command, params in (
            ("Emulation.setDeviceMetricsOverride", size),
            ("Emulation.setEmulatedMedia", {"features": [scheme]}),
        ):
            self._send("/goog/cdp/execute", cmd=command, params=params)

    def drag(self, points: Sequence[tuple[float, float]], pointer: str) -> None:
        """Draws a line with a pressed "mouse", "touch" or "pen".

        Its points are in CSS pixels from the viewport's top left corner.
        """
        start, *moves = (
            {"type": "pointerMove", "duration": 10, "x": round(x), "y": round(y)}
            for x, y in points
        )
        down, up = ({"type": f"pointer{way}", "button": 0} for way in ("Down", "Up"))
        device = {
            "type": "pointer",
            "id": pointer,
            "parameters": {"pointerType": pointer},
            "actions": [start, down, *moves, up],
        }
        self._send("/actions", actions=[device])


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium; the test is skipped if there is none."""
    driver, chromium = (
        next(filter(None, map(shutil.which, names)), None)
        for names in (DRIVERS, BROWSERS)
    )
    if not driver or not chromium:
        pytest.skip("no chromium and chromedriver on the PATH: no browser to test with")
    arguments = ["--headless=new", "--disable-gpu", "--disable-dev-shm-usage"]
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # as root, Chromium needs this flag
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                [driver, "--port=0"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        stack.callback(process.terminate)
        started = re.compile(r"started successfully on port (\d+)")
        port = next(filter(None, map(started.search, process.stdout or ())), None)
        assert port, "the driver exited before it printed its port"
        browser = Browser(
            int(port[1]),
            browserName="chrome",
            timeouts={"script": 120_000, "pageLoad": 120_000},  # milliseconds
            **{
                "goog:chromeOptions": {"binary": chromium, "args": arguments},
                "goog:loggingPrefs": {"browser": "ALL"},
            },
        )
        yield stack.enter_context(contextlib.closing(browser))
