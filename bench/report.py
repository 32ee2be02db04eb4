#!/usr/bin/env python3
"""Measure `itstrace analyze --html` on a capture of a million MSIs, and its page in Chromium; print Markdown.

The capture is written (tests/helpers/busy_capture.py: 2,000 MSIs, four vCPUs, 64 LPIs) and its pages repeated. The
page's cost is that of `analyze --html` less that of `analyze`; without `--html` nothing of plotly is imported, which is
asserted. In the browser, each number is the median of several fresh openings.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import analyze as bench_analyze
import make_capture
from helpers import busy_capture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helpers.browser import Browser

ROOT: Final = make_capture.ROOT
MSIS: Final = 1_000_000
EACH: Final = 2000
#: What was promised of the page of a million MSIs.
WANTED_BYTES: Final = 10_000_000


def make(folder: Path, msis: int) -> Path:
    """A capture of so many MSIs, or a few more."""
    base = busy_capture.write(folder / "base.dat", msis=EACH)
    plans = make_capture.plan(make_capture.read_base(base), 1)
    capture = folder / "many.dat"
    make_capture.make(capture, plans[1] * -(-msis // EACH), base)
    return capture


def plotly_imported(capture: Path) -> bool:
    """Whether an analysis without a page imports plotly."""
    script = "import sys\nfrom itstrace.cli import main\ntry: main()\nfinally: print('plotly' in sys.modules, file=sys.stderr)"
    command = [sys.executable, "-c", script, "analyze", str(capture)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stderr.strip().endswith("True")


# --- in the browser


def _to(place: str, selector: str) -> str:
    """A script that goes to a place and waits for what stands there."""
    return f"location.hash = '{place}'; await until(() => document.querySelector('{selector}'));"


#: What is done in the page: its name, where it begins, the script that does it and waits until it is drawn.
_DRAWN: Final = "await new Promise(done => requestAnimationFrame(() => setTimeout(done)));"
ACTIONS: Final = (
    ("findings, first shown", "view=verdict", _to("view=findings", ".finding")),
    ("timeline, first shown (plotly.js starts)", "view=verdict", _to("view=timeline", ".plot[data-drawn]")),
    (
        "timeline, one zoom",
        "view=timeline",
        (
            "document.querySelector('.plotbar .buttons button:nth-child(2)').click();"
            "await until(() => /from=/.test(location.hash));"
        ),
    ),
    ("tables, first shown", "view=verdict", _to("view=tables", ".tablebox")),
    (
        "tables, one step of the slider",
        "view=tables",
        (
            "const slider = document.querySelector('.timebar input[type=range]');"
            "slider.value = 700; slider.dispatchEvent(new Event('input'));"
        ),
    ),
    ("LPIs, first shown", "view=verdict", _to("view=lpis", ".lpis .grid td")),
    ("life of an LPI, opened", "view=lpis", _to("lpi=0:8200", ".life h2")),
    ("commands, first shown", "view=verdict", _to("view=commands", ".commands .grid td")),
    (
        "commands, searched",
        "view=commands",
        (
            "location.hash = 'view=commands&q=mapti 0x3';"
            "await until(() => /of .* shown/.test(document.querySelector('.commands .heading').innerText));"
        ),
    ),
)
_TIMED: Final = """
    const until = async (test) => { while (!test()) await new Promise(done => setTimeout(done, 1)); };
    const begun = performance.now();
    %s
    return performance.now() - begun;
"""


def first_paint(browser: Browser, page: Path) -> tuple[float, float]:
    """Milliseconds from the navigation to the first contentful paint, and to the verdict's picture."""
    browser.open(page)
    browser.wait(
        "return performance.getEntriesByName('first-contentful-paint').length && document.querySelector('svg.path')"
    )
    paint = browser.run("return performance.getEntriesByName('first-contentful-paint')[0].startTime")
    ready = browser.promised("await itstrace.frames(); return performance.now()")
    return float(paint), float(ready)


def action(browser: Browser, page: Path, place: str, script: str) -> float:
    """Milliseconds that something takes, drawing included, on a page newly opened."""
    browser.open(page, place)
    if place != "view=verdict":
        browser.promised(f"await itstrace.frames(); {_DRAWN}")
    return float(browser.promised(_TIMED % (script + _DRAWN)))


def measure_page(page: Path, runs: int) -> Iterator[tuple[str, float]]:
    """Rows of the browser's table, in ms, as they are measured."""
    from helpers.browser import CHROMIUM, DRIVER, Browser  # noqa: PLC0415  selenium may not be there

    if CHROMIUM is None or DRIVER is None:
        raise SystemExit("chromium and chromedriver are not installed; --no-browser measures the rest")
    with tempfile.TemporaryDirectory() as profile:
        browser = Browser(Path(profile))
        try:
            paints = [first_paint(browser, page) for _ in range(runs)]
            yield "first contentful paint (the verdict)", statistics.median(paint for paint, _ in paints)
            yield "everything unpacked", statistics.median(ready for _, ready in paints)
            for name, place, script in ACTIONS:
                yield name, statistics.median(action(browser, page, place, script) for _ in range(runs))
        finally:
            browser.close()


def in_browser(page: Path, runs: int) -> None:
    """Print the browser's table."""
    print("| in Chromium | median |\n| --- | --- |")
    for name, took_ms in measure_page(page, runs):
        print(f"| {name} | {took_ms:.0f} ms |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--msis", type=int, default=MSIS, help="how many MSIs (%(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="openings of the page per number (%(default)s)")
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")
    parser.add_argument("--page", type=Path, help="measure this page in the browser, and nothing else")
    parser.add_argument("--keep", type=Path, help="a folder for the capture and the page")
    args = parser.parse_args()
    if args.page is not None:
        in_browser(args.page, args.runs)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        capture, page = make(folder, args.msis), folder / "report.html"
        if plotly_imported(folder / "base.dat"):
            raise SystemExit("plotly is imported although no page is asked for")
        command = [sys.executable, "-m", "itstrace.cli", "analyze", str(capture)]
        plain = bench_analyze.measure(command)
        whole = bench_analyze.measure([*command, "--html", str(page)])
        size = page.stat().st_size
        print(f"A capture of {args.msis:,} MSIs ({capture.stat().st_size / 1e6:.0f} MB).\n")
        print("| | analyze | analyze --html | the page |\n| --- | --- | --- | --- |")
        print(f"| CPU time | {plain.cpu_s:.2f} s | {whole.cpu_s:.2f} s | {whole.cpu_s - plain.cpu_s:.2f} s |")
        print(
            f"| wall time | {plain.wall_s:.2f} s | {whole.wall_s:.2f} s | {whole.wall_s - plain.wall_s:.2f} s |"
        )
        more = (whole.anonymous_bytes - plain.anonymous_bytes) / 1e6
        memory = [f"{each.anonymous_bytes / 1e6:.0f} MB" for each in (plain, whole)]
        print(f"| peak anonymous memory | {' | '.join(memory)} | {more:.0f} MB |")
        verdict = "kept" if size <= WANTED_BYTES else "NOT kept"
        print(f"| size | | | {size / 1e6:.2f} MB, of {WANTED_BYTES / 1e6:.0f} MB promised: {verdict} |\n")
        if not args.no_browser:
            in_browser(page, args.runs)


if __name__ == "__main__":
    main()
