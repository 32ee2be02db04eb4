"""Two captures side by side as lines, as JSON and as a page."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.tiny_analysis import hostile, story, tiny
from helpers.tiny_capture import HOSTILE
from rich.cells import cell_len

from itstrace.difference import Difference, Limits, difference
from itstrace.report.difference import Grid, Told, difference_document, difference_lines, sections, verdict
from itstrace.report.difference_html import ROWS, difference_page
from itstrace.report.layout import Sheet

PAIRS = [
    ("6.12-clean.dat", "6.12-stale-translation.dat"),
    ("6.12-clean.dat", "6.12-lost-lpi.dat"),
    ("7.3-migrate.dat", "6.12-lost-records.dat"),
    ("6.12-clean.dat", "qemu-linux.log.zst"),
]


def of(good: str, bad: str) -> Difference:
    """The difference of two samples."""
    return difference(analysis_of(SAMPLES / good), analysis_of(SAMPLES / bad))


def text(different: Difference, width: int | None = None) -> str:
    """The report as lines."""
    return "\n".join(line.plain for line in difference_lines(Sheet(width, fine=width is not None), different))


class Page(HTMLParser):
    """A page as it is parsed: its elements, their attributes and all that it says."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember an element."""
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Every end must close what was opened last."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Remember text."""
        if self.open[-1:] != ["style"]:
            self.said.append(data)


# --- lines


@pytest.mark.parametrize(("good", "bad"), PAIRS)
def test_a_terminal_of_80_columns_is_enough(good: str, bad: str) -> None:
    different = of(good, bad)

    assert max(map(cell_len, text(different, 80).splitlines())) <= 80
    assert text(different).splitlines()[0].startswith("A and B differ: ")


def test_the_report_begins_with_what_differs_and_what_was_recorded() -> None:
    shown = text(of("6.12-clean.dat", "6.12-stale-translation.dat"))
    lines = shown.splitlines()

    assert lines[0] == "A and B differ: 2 findings and 4 table entries are not the same."
    assert lines[1] == "New in B: stale-translation (ITS201) and delivered-after-unmap (ITS305)."
    titles = re.findall(r"^(Recorded|Findings|Tables|Outcomes of MSIs|Latency|Rates)  ", shown, re.MULTILINE)
    assert titles == ["Recorded", "Findings", "Tables", "Outcomes of MSIs", "Latency", "Rates"]
    assert "new in B: ERROR ITS201 stale-translation (KVM's doing, certain, once)" in shown
    assert re.search(r"^  device 0x8 event 1 \(LPI 8192\) +collection 0 +collection 1$", shown, re.MULTILINE)
    assert re.search(r"^  kernel +6\.12\.107\+deb13-arm64 +same$", shown, re.MULTILINE)


def test_no_difference_is_said_with_what_was_compared() -> None:
    shown = text(of("6.12-clean.dat", "6.12-clean.dat"))

    assert shown.startswith(
        "No difference was found.\n60 fields of table entries and 3 findings are the same in both"
    )
    assert "Not all of it can be compared" not in shown


def test_what_cannot_be_compared_is_said_at_the_top() -> None:
    first = verdict(of("6.12-clean.dat", "qemu-linux.log.zst"))

    assert first[-1] == "Not all of it can be compared; why is said under Recorded."
    shown = text(of("6.12-clean.dat", "qemu-linux.log.zst"))
    assert "Not judged: B did not record QUEUEINGS, LIST_REGISTERS." in shown
    assert re.search(r"deliveries +\? +\? +not recorded in both", shown)


def test_a_shift_is_told_with_its_measure() -> None:
    shown = " ".join(text(of("6.12-clean.dat", "6.12-lost-lpi.dat")).split())

    assert "slower (tail)" in shown
    assert "15 of 89 in B took longer than 2 times the longest of A (9.44 ms)" in shown
    assert "coalesced 0 0.0 % 11 9.2 % +9.2 points" in shown


def test_a_median_is_told_with_its_ratio() -> None:
    a, b = (analysis_of(SAMPLES / name) for name in ("7.3-migrate.dat", "6.12-lost-records.dat"))
    shown = " ".join(text(difference(a, b)).split())

    assert "faster in B: the median of A is 9.82 times that of B" in shown
    assert "It is the guest's time, and does not count." in shown


def test_rows_of_a_table_can_be_limited() -> None:
    different = of("6.12-clean.dat", "qemu-linux.log.zst")
    lines = [line.plain for line in difference_lines(Sheet(), different, 3)]

    assert "  3 of 29 shown, --limit 0 for all" in lines
    assert not any("shown, --limit" in line.plain for line in difference_lines(Sheet(), different, None))


def test_the_limits_that_were_set_are_said() -> None:
    analysis = analysis_of(SAMPLES / "6.12-clean.dat")
    shown = text(difference(analysis, analysis, limits=Limits(3.5, 12.5, 4, 99)))

    assert "counts from 3.5 times, beyond chance, of 99 MSIs or more" in shown
    assert "counts from 12.5 points" in shown
    assert "told from 4 times, and never counted" in shown


# --- JSON


@pytest.mark.parametrize(("good", "bad"), PAIRS)
def test_json_is_whole_and_finite(good: str, bad: str) -> None:
    different = of(good, bad)
    document = json.loads(json.dumps(difference_document(different), allow_nan=False))

    assert document["schema"] == "itstrace.diff/1"
    assert document["differs"] is True
    assert document["counted"] == different.counted
    assert sum(one["differs"] for one in document["findings"]) == different.counted["findings"]
    assert len(document["entries"]) + document["equal_fields"] == different.entries.height
    assert {row["verdict"] for row in document["entries"]} <= {"different", "aside", "unknown"}
    assert len(document["outcomes"]) == different.outcomes.height
    assert len(document["latencies"]) == different.latencies.height


def test_json_tells_findings_of_both_sides() -> None:
    document = difference_document(of("6.12-clean.dat", "6.12-stale-translation.dat"))
    by_code = {(one["code"], one["change"]): one for one in document["findings"]}
    new, both = by_code["ITS201", "new"], by_code["ITS102", "both"]

    assert (new["a"], new["count_a"], len(new["b"])) == ([], 0, 1)
    assert new["b"][0]["code"] == "ITS201"
    assert (both["count_a"], both["count_b"]) == (3, 4)
    assert [one["event_id"] for one in both["only_b"]] == [1, 3]


# --- the page


@pytest.mark.parametrize(("good", "bad"), PAIRS)
def test_the_page_says_what_the_report_says(good: str, bad: str) -> None:
    different = of(good, bad)
    page = Page(difference_page(different))
    said = " ".join(" ".join(page.said).split())

    assert page.open == []
    for section in sections(different):
        assert section.title in said
        for part in section.parts:
            if isinstance(part, Told):
                assert part.text in said
            else:
                assert all(cell.strip() in said for line in part.lines for cell in line.cells)


def test_the_page_asks_for_nothing_and_runs_nothing() -> None:
    html = difference_page(of("6.12-clean.dat", "6.12-lost-lpi.dat"))
    page = Page(html)
    policy = next(
        attributes["content"]
        for tag, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()

    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "form", "base"}
    # A style attribute would need a policy of its own, a handler a script.
    assert not [
        name for _, attributes in page.tags for name in attributes if name == "style" or name.startswith("on")
    ]
    assert {attributes["href"][:1] for tag, attributes in page.tags if tag == "a" and attributes["href"]} == {
        "#"
    }
    assert "url(" not in style


def test_tables_of_the_page_have_heads() -> None:
    page = Page(difference_page(of("6.12-clean.dat", "6.12-lost-lpi.dat")))
    scopes = [attributes.get("scope") for tag, attributes in page.tags if tag == "th"]
    tables = sum(tag == "table" for tag, _ in page.tags)

    assert set(scopes) == {"col", "row"}
    assert tables == sum(attributes.get("role") == "region" for _, attributes in page.tags)
    assert all(
        attributes.get("aria-label") for _, attributes in page.tags if attributes.get("role") == "region"
    )
    anchors = {attributes["id"] for tag, attributes in page.tags if tag == "section"}
    assert {attributes["href"] for tag, attributes in page.tags if tag == "a"} == {
        f"#{each}" for each in anchors
    }


def test_rows_that_count_are_marked_without_colour() -> None:
    html = difference_page(of("6.12-clean.dat", "6.12-stale-translation.dat"))

    assert html.count('<tr class="counts">') == 4
    assert 'tr.counts > :first-child::before { content: "\\2260' in html


def test_hostile_words_stay_text() -> None:
    for different in (difference(hostile(), tiny()), difference(story(), hostile())):
        html = difference_page(different)
        page = Page(html)

        assert page.open == []
        assert not any(tag == "script" for tag, _ in page.tags)
        assert "<script" not in html
        assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", html)
        assert "[red]\\x1b[2J\\x07<script>\\u202e" in "".join(page.said)
        shown = text(different)
        assert all(line.isprintable() for line in shown.split("\n"))
        document = json.dumps(difference_document(different))
        assert document.isascii()
        assert json.dumps(HOSTILE)[1:-1] in document


def test_a_page_is_bounded() -> None:
    base = of("6.12-clean.dat", "6.12-stale-translation.dat")
    one = base.entries.filter(pl.col("verdict") == "different").head(1)
    many = pl.concat(
        [one.with_columns(intid=pl.lit(number, pl.UInt32), what=pl.lit("lpi")) for number in range(ROWS + 5)]
    )
    different = Difference(
        base.limits, base.vms, None, None, base.recorded, base.findings, many, base.rates, base.outcomes, base.latencies
    )  # fmt: skip
    grid = next(
        part
        for section in sections(different)
        for part in section.parts
        if isinstance(part, Grid) and part.columns[0] == "entry"
    )
    html = difference_page(different)

    assert len(grid.lines) == ROWS + 5
    assert html.count('<tr class="counts">') == ROWS
    assert "2,000 of 2,005 rows; --json has all." in html
