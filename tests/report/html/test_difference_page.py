"""The page of a difference in a real browser: it opens, asks for nothing, and can be read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from conftest import SAMPLES, analysis_of
from helpers.tiny_analysis import hostile, tiny

from itstrace.difference import Difference, difference
from itstrace.report.difference_html import difference_page

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.browser import Browser

PAIRS = [
    ("6.12-clean.dat", "6.12-double-delivery.dat"),
    ("7.3-migrate.dat", "6.12-lost-records.dat"),
    ("6.12-clean.dat", "qemu-linux.log.zst"),
]


def opened(browser: Browser, folder: Path, different: Difference) -> Path:
    """The page of a difference, in a file that the browser shows."""
    path = folder / "diff.html"
    path.write_text(difference_page(different), encoding="utf-8")
    browser.requests()
    browser.look(path)
    return path


def of(good: str, bad: str) -> Difference:
    """The difference of two samples."""
    return difference(analysis_of(SAMPLES / good), analysis_of(SAMPLES / bad))


@pytest.mark.parametrize(("good", "bad"), PAIRS)
def test_it_opens_without_a_word_without_a_request_and_fits(
    browser: Browser, tmp_path: Path, good: str, bad: str
) -> None:
    path = opened(browser, tmp_path, of(good, bad))

    for width in (480, 1280, 2560):
        browser.size(width, 900)
        assert browser.run("return document.documentElement.scrollWidth") <= width
    browser.size(1280, 900)
    shown = browser.texts("h1")[0]
    assert shown
    # Its style is applied: the policy allows it.
    assert browser.run("return getComputedStyle(document.querySelector('section')).borderRadius") == "8px"
    for link in browser.run(
        "return [...document.querySelectorAll('nav a')].map(each => each.getAttribute('href'))"
    ):
        browser.look(path, link[1:])
        assert browser.run("return document.querySelector(':target').getBoundingClientRect().top") < 900
    assert browser.heard() == []
    assert browser.requests() == []


@pytest.mark.parametrize("bad", ["6.12-lost-lpi.dat", "6.12-double-delivery.dat", "qemu-linux.log.zst"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_barrier(browser: Browser, tmp_path: Path, scheme: str, bad: str) -> None:
    pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    from axe_core_python.selenium import Axe  # noqa: PLC0415  may not be there

    browser.scheme(scheme)
    try:
        opened(browser, tmp_path, of("6.12-clean.dat", bad))
        found = Axe().run(browser.driver)
    finally:
        browser.scheme("light")
    wrong = [one for one in found["violations"] if one["impact"] in {"serious", "critical"}]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in wrong] == []
    assert found["passes"]


def test_it_is_read_from_the_worst_to_what_was_recorded(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path, of("6.12-clean.dat", "6.12-double-delivery.dat"))

    (guests,) = browser.texts(".saying p.warning")
    assert guests.endswith("A and B show different guests: 4 devices only in A, 1 only in B, 1 in both.")
    (title,) = browser.texts("h1.error")
    assert title.startswith("New in B: KVM had one LPI live on two vCPUs at once (ITS401)")
    tops = browser.run(
        "return [...document.querySelectorAll('.saying p, h1, .tiles, #findings, #outcomes, #latency, #rates, #recorded')]"
        ".map(each => each.getBoundingClientRect().top)"
    )
    assert tops == sorted(tops)
    # Side by side: where it was found, and where it was not.
    sides = browser.texts("article.finding:first-of-type .both > div")
    assert sides[0].split() == ["A", "not", "found"]
    assert sides[1].startswith("B")
    # What each guest mapped is opened by who wants it.
    assert browser.texts("#tables details td") == []
    browser.run("document.querySelector('#tables summary').click()")
    assert "not mapped" in browser.texts("#tables details td")


def test_distributions_are_drawn_in_the_colours_of_the_page(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path, of("6.12-clean.dat", "6.12-lost-lpi.dat"))
    fill = "return getComputedStyle(document.querySelector(arguments[0])).fill"

    # Without a style they would be black.
    assert browser.run(fill, "#latency rect.ofa") == "rgb(0, 114, 178)"
    middle = "document.querySelectorAll('#latency tbody tr')[1]"
    boxes = browser.run(
        f"const row = {middle}, axis = row.querySelector('.axis').getBoundingClientRect().top;"
        "const all = name => [...row.querySelectorAll(name)].map(each => each.getBoundingClientRect());"
        "return [Math.max(...all('.ofa').map(box => box.bottom)) - axis, Math.min(...all('.ofb').map(box => box.top)) - axis]"
    )
    assert boxes[0] <= 1  # A above the line
    assert boxes[1] >= -1  # B below it
    assert browser.run(f"return getComputedStyle({middle}.cells[0], '::before').content") == '"\u2260\u00a0"'


def test_on_paper_nothing_is_folded(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path, of("6.12-clean.dat", "6.12-double-delivery.dat"))
    height = "return document.querySelector('#tables details tbody').getBoundingClientRect().height"
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        printed = browser.run(height)
        hidden = browser.run("return getComputedStyle(document.querySelector('.bar')).display")
        width = browser.run("return document.documentElement.scrollWidth")
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert printed > 100
    assert hidden == "none"
    assert width <= 1280


def test_hostile_text_stays_text(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path, difference(hostile(), tiny()))

    assert "<script>" in browser.texts("body")[0]
    assert not browser.run("return document.scripts.length")
    assert browser.heard() == []
    assert browser.requests() == []
