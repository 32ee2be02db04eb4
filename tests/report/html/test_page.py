"""The page as a file: its policy, what is escaped, where its parts stand; and plotly only where it is needed."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest
from conftest import SAMPLES, analysis_of
from helpers.tiny_analysis import hostile, tiny

from itstrace.report.html import Assets, Page, page
from itstrace.report.html.page import plotly_js

if TYPE_CHECKING:
    from pathlib import Path

    from itstrace import Analysis

MOST_BYTES = 10_000_000


def _page(analysis: Analysis, assets: Assets = Assets.INLINE) -> Page:
    return page(analysis, pages=lambda _: "", rules=22, comms={}, assets=assets)


class _Elements(HTMLParser):
    """Every element of a page: name, attributes, text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self.found.append((f"/{tag}", {}, ""))

    def handle_data(self, data: str) -> None:
        if self.found:
            tag, attributes, text = self.found[-1]
            self.found[-1] = (tag, attributes, text + data)


def _policy(html: str) -> dict[str, list[str]]:
    metas = [attributes for tag, attributes, _ in _Elements(html).found if tag == "meta"]
    policy = (
        next(each["content"] for each in metas if each.get("http-equiv") == "Content-Security-Policy") or ""
    )
    return {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_the_policy_allows_the_page_s_own_scripts_and_nothing_else() -> None:
    html = _page(tiny()).html
    policy = _policy(html)
    script = next(
        text for tag, attributes, text in _Elements(html).found if tag == "script" and not attributes
    )

    assert policy["default-src"] == ["'none'"]
    assert policy["script-src"] == [_hash(script), _hash(plotly_js())]
    assert "'unsafe-inline'" not in str(policy)
    assert "'unsafe-eval'" not in str(policy)
    assert "connect-src" not in policy  # so that default-src holds
    assert policy["base-uri"] == policy["form-action"] == ["'none'"]


def test_a_page_refers_to_nothing_outside() -> None:
    for _, attributes, _ in _Elements(_page(tiny()).html).found:
        assert not {"src", "data-src", "action", "ping", "srcset"} & set(attributes)
        assert (attributes.get("href") or "#").startswith("#")


def test_plotly_is_in_it_once_and_it_is_small() -> None:
    html = _page(analysis_of(SAMPLES / "7.3-guest-mistakes.dat")).html
    assert html.count("plotly.js v") == 1
    assert len(html.encode()) < MOST_BYTES


def test_hostile_text_stands_escaped_in_data() -> None:
    html = _page(hostile()).html
    ours = [attributes for tag, attributes, _ in _Elements(html).found if tag == "script"]
    assert all(attributes.get("id") for attributes in ours[:-1])
    assert ours[-1] == {}
    for block in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', html, re.DOTALL):
        assert block.isascii()
        assert not {"<", ">", "&"} & set(block)
        json.loads(block)


def test_assets_in_a_folder_beside_it() -> None:
    made = _page(tiny(), Assets.DIRECTORY)
    assert set(made.beside) == {
        f"report.files/{name}" for name in ("style.css", "report.js", "plotly.min.js")
    }
    sources = {
        attributes.get("src") or attributes.get("data-src") or attributes.get("href")
        for _, attributes, _ in _Elements(made.html).found
    }
    assert set(made.beside) <= sources
    assert len(made.html) < 200_000


def test_plotly_from_its_cdn_is_checked() -> None:
    made = _page(tiny(), Assets.CDN)
    attributes = next(each for tag, each, _ in _Elements(made.html).found if each.get("id") == "plotly")
    assert re.fullmatch(r"https://cdn\.plot\.ly/plotly-[\d.]+\.min\.js", attributes["data-src"] or "")
    assert attributes["data-integrity"] == _hash(plotly_js()).strip("'")
    assert _policy(made.html)["script-src"][-1] == attributes["data-src"]
    assert not made.beside


@pytest.mark.parametrize("wanted", [False, True])
def test_plotly_is_never_imported(tmp_path: Path, *, wanted: bool) -> None:
    arguments = ["analyze", str(SAMPLES / "6.12-double-delivery.dat")]
    arguments += ["--html", str(tmp_path / "report.html")] if wanted else []
    script = (
        "import sys\nfrom itstrace.cli import main\ntry: main()\nfinally: "
        "print('plotly' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stderr.strip().splitlines()[-1] == "False"
    assert (tmp_path / "report.html").exists() == wanted


def test_the_parts_are_in_the_wheel() -> None:
    from itstrace.report.html.page import SCRIPTS, asset  # noqa: PLC0415  only here

    assert all(asset(name).strip() for name in (*SCRIPTS, "page.html", "base.css", "style.css"))
    for name in SCRIPTS:
        assert "innerHTML" not in asset(name)
        assert "insertAdjacentHTML" not in asset(name)
        assert "eval(" not in asset(name)
