"""A real Chromium that opens pages from files, and tells what it said and asked for."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, Any

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

if TYPE_CHECKING:
    from pathlib import Path

    from selenium.webdriver.remote.webelement import WebElement

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
_OPTIONS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    # There is no network: what asks for one fails.
    "host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
#: A page may take so long on a busy machine; nothing waits that long where it works.
PATIENCE_S = 60.0


class Browser:
    """One window. `open` a page, go to a place in it, look and type."""

    def __init__(self, profile: Path, *, width: int = 1280, height: int = 900) -> None:
        options = Options()
        assert CHROMIUM is not None
        options.binary_location = CHROMIUM
        for option in (*_OPTIONS, f"user-data-dir={profile}", f"window-size={width},{height}"):
            options.add_argument(f"--{option}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.driver.set_script_timeout(PATIENCE_S)
        self.size(width, height)

    def size(self, width: int, height: int) -> None:
        """Make the window so large inside."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def scheme(self, name: str) -> None:
        """Prefer `light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def open(self, path: Path, place: str = "") -> None:
        """Open a report at a place of it (what stands behind `#`)."""
        self.look(path, place)
        self._arrived(place)

    def look(self, path: Path, place: str = "") -> None:
        """Open a page that has no script."""
        self.heard()  # of the page before
        self.driver.get("about:blank")
        self.driver.get(f"{path.as_uri()}#{place}" if place else path.as_uri())

    def go(self, place: str) -> None:
        """Go to a place of the page, as a link does."""
        self.run("location.hash = arguments[0]", place)
        self._arrived(place)

    def _arrived(self, place: str) -> None:
        self.wait(
            "return document.documentElement.dataset.ready === (arguments[0] ? '#' + arguments[0] : '#')",
            place,
        )

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def promised(self, script: str, *arguments: Any) -> Any:
        """Run a script that gives a promise; what it becomes."""
        whole = f"const done = arguments[arguments.length - 1]; (async () => {{ {script} }})().then(done)"
        return self.driver.execute_async_script(whole, *arguments)

    def wait(self, script: str, *arguments: Any) -> Any:
        """Wait until a script gives something true."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            found = self.run(script, *arguments)
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError(f"never came true: {script} {arguments} at {self.run('return location.hash')}")

    def all(self, selector: str) -> list[WebElement]:
        """Elements that can be seen."""
        return [one for one in self.driver.find_elements(By.CSS_SELECTOR, selector) if one.is_displayed()]

    def texts(self, selector: str) -> list[str]:
        """Texts of visible elements."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].filter(one => one.checkVisibility())"
            ".map(one => one.innerText.trim())"
        )
        return [str(text) for text in self.run(script, selector)]

    def rows(self, selector: str) -> list[list[str]]:
        """Texts of the cells of a table's visible rows."""
        script = (
            "return [...document.querySelectorAll(arguments[0] + ' tbody tr:not(.space)')]"
            ".filter(row => row.checkVisibility()).map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        )
        return [[str(cell) for cell in row] for row in self.run(script, selector)]

    def press(self, *keys: str) -> None:
        """Press keys, wherever the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def heard(self) -> list[str]:
        """What the console said since it was asked last: errors, warnings, violations of the policy."""
        logs = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [str(entry["message"]) for entry in logs if entry["level"] in {"SEVERE", "WARNING"}]

    def requests(self) -> list[str]:
        """What was asked for since this was asked last, but for pages from files."""
        asked = []
        for entry in self.driver.get_log("performance"):  # type: ignore[no-untyped-call]
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                asked.append(str(message["params"]["request"]["url"]))
        return [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))]

    def close(self) -> None:
        """End it."""
        self.driver.quit()


__all__ = ["CHROMIUM", "DRIVER", "Browser", "Keys"]
