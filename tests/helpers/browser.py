"""A fixture for tests of web pages: a headless Chromium, driven by Selenium."""

import os
import shutil
from collections.abc import Iterator, Sequence

import pytest
from selenium import webdriver
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.pointer_input import PointerInput

DRIVERS = ("chromedriver", "chromium.chromedriver")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


class Browser(webdriver.Chrome):
    """A window."""

    def open(self, url: str) -> None:
        """Loads a page, and discards older console output."""
        self.console()
        self.get(url)

    def console(self) -> list[str]:
        """Returns the console's errors and warnings since the last call.

        They include failed requests and uncaught exceptions.
        """
        levels = ("SEVERE", "WARNING")
        return [e["message"] for e in self.get_log("browser") if e["level"] in levels]

    def emulate(self, width: int, height: int, color_scheme: str = "light") -> None:
        """Sets the viewport's size in CSS pixels and the preferred color scheme."""
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": color_scheme}
        self.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def drag(self, points: Sequence[tuple[float, float]], pointer: str) -> None:
        """Draws a line with a pressed "mouse", "touch" or "pen".

        Its points are in CSS pixels from the viewport's top left corner.
        """
        actions = ActionBuilder(self, PointerInput(pointer, pointer), duration=10)
        for number, (x, y) in enumerate(points):
            actions.pointer_action.move_to_location(round(x), round(y))
            if number == 0:
                actions.pointer_action.pointer_down()
        actions.pointer_action.pointer_up()
        actions.perform()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium; the test is skipped if there is none."""
    driver, chromium = (
        next(filter(None, map(shutil.which, names)), None)
        for names in (DRIVERS, BROWSERS)
    )
    if not driver or not chromium:
        pytest.skip("no chromium and chromedriver on the PATH: no browser to test with")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("headless=new", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{word}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # as root, Chromium needs this flag
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with Browser(options, webdriver.ChromeService(driver)) as window:
        window.set_script_timeout(120)
        yield window
