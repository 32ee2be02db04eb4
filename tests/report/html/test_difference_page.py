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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_barrier(browser: Browser, tmp_path: Path, scheme: str) -> None:
    pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    from axe_core_python.selenium import Axe  # noqa: PLC0415  may not be there

    browser.scheme(scheme)
    try:
        opened(browser, tmp_path, of("6.12-clean.dat", "6.12-lost-lpi.dat"))
        found = Axe().run(browser.driver)
    finally:
        browser.scheme("light")
    bad = [one for one in found["violations"] if one["impact"] in {"serious", "critical"}]
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in bad] == []
    assert found["passes"]


def test_hostile_text_stays_text(browser: Browser, tmp_path: Path) -> None:
    opened(browser, tmp_path, difference(hostile(), tiny()))

    assert "<script>" in browser.texts("body")[0]
    assert not browser.run("return document.scripts.length")
    assert browser.heard() == []
    assert browser.requests() == []
