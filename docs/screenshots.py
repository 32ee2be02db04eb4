"""Make the pictures of the tour: `python docs/screenshots.py`; needs Chromium on the PATH.

Each is a headless browser's view of the page that `itstrace analyze --html` makes of a sample capture, at one address in it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

DOCS = Path(__file__).parent
SAMPLE = DOCS.parent / "sample-traces" / "6.12-double-delivery.dat"
#: By the picture's name: the address in the page, and the height of the window.
PICTURES = {
    "verdict": ("", 1000),
    "finding": ("finding=ITS401", 1250),
    "tables": ("t=1350.325229", 1000),
}
WIDTH = 1280
#: Milliseconds of the page's own time in which everything is unpacked and drawn.
BUDGET_MS = 8000
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)


def main() -> int:
    """Write the page into a temporary folder, and a picture of each address."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("no Chromium on the PATH")
        return 1
    (DOCS / "images").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="itstrace-docs-") as folder:
        page = Path(folder) / "report.html"
        sample = SAMPLE.relative_to(DOCS.parent)
        command = [sys.executable, "-m", "itstrace.cli", "analyze", str(sample), "--html", str(page)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=DOCS.parent)
        for name, (address, height) in PICTURES.items():
            picture = DOCS / "images" / f"{name}.png"
            command = [
                chromium,
                *QUIET,
                f"--user-data-dir={folder}/{name}",
                f"--window-size={WIDTH},{height}",
                f"--virtual-time-budget={BUDGET_MS}",
                f"--screenshot={picture}",
                f"{page.as_uri()}#{address}",
            ]
            subprocess.run(command, check=True, capture_output=True)
            print(f"wrote {picture.relative_to(DOCS.parent)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
