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
from itstrace.report.difference import (
    difference_document,
    difference_lines,
    overview,
    sections,
    verdict,
)
from itstrace.report.difference.parts import Grid, Part, Spread, Stages, Told
from itstrace.report.difference_drawing import Scale, axis, distribution, scale, shares
from itstrace.report.difference_html import ROWS, difference_page
from itstrace.report.html.page import asset
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
@pytest.mark.parametrize("width", [80, 120])
def test_a_terminal_is_wide_enough(good: str, bad: str, width: int) -> None:
    assert max(map(cell_len, text(of(good, bad), width).splitlines())) <= width


def test_the_report_begins_with_what_is_new_and_ends_with_what_was_recorded() -> None:
    shown = text(of("6.12-clean.dat", "6.12-stale-translation.dat"))
    first = " ".join(shown.split("\n\n")[0].split())

    assert first == (
        "New in B: KVM sent an MSI by a stale translation (ITS201): LPI 8193 (device 0x10, event 2); "
        "it leads to ITS305 delivered-after-unmap."
    )
    titles = re.findall(r"^(Recorded|Findings|Tables|Outcomes of MSIs|Latency|Rates)  ", shown, re.MULTILINE)
    assert titles == ["Findings", "Outcomes of MSIs", "Latency", "Rates", "Tables", "Recorded"]
    assert "new in B: ERROR ITS201 stale-translation (KVM's doing)" in shown
    assert re.search(r"^  device 0x8 event 1 \(LPI 8192\) +collection 0 +collection 1$", shown, re.MULTILINE)
    assert "$ itstrace analyze " in shown
    assert "6.12-stale-translation.dat --select ITS201,ITS305\n" in shown
    assert re.search(r"^  length +3\.75 s +10\.3 s$", shown, re.MULTILINE)
    assert "kernel 6.12.107+deb13-arm64" in shown.rpartition("The same in both: ")[2]


def test_different_guests_are_said_first() -> None:
    different = of("6.12-clean.dat", "6.12-double-delivery.dat")
    first, second, *rest = verdict(different)
    told = dict(overview(different))

    assert first.text == "A and B show different guests: 4 devices only in A, 1 only in B, 1 in both."
    assert second.text.startswith("New in B: KVM had one LPI live on two vCPUs at once (ITS401): LPI 8193")
    assert second.text.endswith("vCPUs 0 and 1.")
    assert rest == []
    assert (
        "of the 10 events (a DeviceID and an EventID) that they map, 6 are mapped in only one of them"
        in told["guests"][0]
    )
    assert told["also different"][0].startswith(
        "18 table entries (of different guests); coalesced MSIs 0.0 % in A, 19.4 % in B"
    )
    assert any("the guests are different" in line.lower() for line in text(different).splitlines())
    assert not any(
        each.text.startswith("A and B show") for each in verdict(of("6.12-clean.dat", "6.12-lost-lpi.dat"))
    )


def test_what_could_explain_it_is_said() -> None:
    told = dict(overview(of("6.12-clean.dat", "6.12-double-delivery.dat")))
    clues = told["may explain it"]

    assert clues[0].startswith("noted only in B: ITS301 lost-lpi (EnableLPIs=0 took it off its list")
    assert "commands only in A: CLEAR (8), DISCARD (6)" in clues
    assert "per second in B: MSIs 8.3 times fewer, commands 7.3 times fewer" in clues
    kernels = dict(overview(of("7.3-migrate.dat", "6.12-lost-records.dat")))["may explain it"]
    assert "kernel: 7.3.4+deb13-arm64 in A, 6.12.107+deb13-arm64 in B" in kernels


def test_what_follows_from_a_cause_is_told_with_it() -> None:
    told = dict(overview(of("6.12-clean.dat", "6.12-stale-translation.dat")))

    assert len(told["new in B"]) == 1
    assert told["new in B"][0].startswith("ERROR ITS201 stale-translation: an MSI was resolved through")
    assert told["new in B"][0].endswith("at 154.938573; leads to ITS305 delivered-after-unmap")


def test_nothing_new_is_said() -> None:
    (said,) = verdict(of("6.12-stale-translation.dat", "6.12-clean.dat"))

    assert said.text == (
        "No finding is new in B. Gone or milder in B: stale-translation (ITS201) and delivered-after-unmap (ITS305)."
    )
    clean = analysis_of(SAMPLES / "6.12-clean.dat")
    start_ns = clean.start_ns
    (tables,) = verdict(difference(clean, clean, at_a_ns=start_ns))
    assert re.fullmatch(
        r"No finding is new in B, and none is gone\. What differs: \d+ table entries\.", tables.text
    )


def test_notes_and_what_both_have_are_not_counted_and_named_so() -> None:
    shown = text(of("6.12-clean.dat", "6.12-double-delivery.dat"))
    both, notes = (
        shown.index("  found in both captures (no difference)"),
        shown.index("  notes, and findings about a capture itself, found in one capture (not counted)"),
    )

    assert both < shown.index("ITS903 missing-observation") < notes
    assert notes < shown.index("only in B: EnableLPIs=0 took it off its list and left its latch set")
    assert "no difference\n" not in shown


def test_a_finding_that_one_side_could_not_look_for_is_told_apart() -> None:
    shown = text(of("qemu-linux.log.zst", "6.12-lost-lpi.dat"))

    assert "found in one capture, where the other could not tell (not counted)" in shown
    assert re.search(r"ITS301 lost-lpi +error +0 +11 +in B; A could not tell", shown)


def test_no_difference_is_said_with_what_was_compared() -> None:
    different = of("6.12-clean.dat", "6.12-clean.dat")
    shown = text(different)

    assert shown.startswith(
        "No difference was found.\n60 fields of table entries and 3 findings are the same in both"
    )
    assert "Not all of it can be compared" not in shown
    assert {label for label, _ in overview(different)} == set()


def test_what_cannot_be_compared_is_said_at_the_top() -> None:
    different = of("6.12-clean.dat", "qemu-linux.log.zst")

    assert verdict(different)[-1].text == "Not all of it can be compared: 24 rules could not run in B."
    shown = text(different)
    assert shown.index("not compared") < shown.index("gone in B") < shown.index("\nFindings")
    # The long list is shortened there, and whole under what was recorded.
    assert " ".join(shown.split()).count("ITS304 and 16 others.") == 1
    assert "ITS405, ITS406" in " ".join(shown[shown.index("\nRecorded") :].split())
    assert "Not judged: B did not record QUEUEINGS, LIST_REGISTERS." in shown
    assert re.search(r"deliveries +\? +\? +not recorded in both", shown)
    lossy = verdict(of("7.3-migrate.dat", "6.12-lost-records.dat"))[-1]
    assert lossy.text == "Not all of it can be compared: 4 rules could not run in A and B lost records."


def test_a_shift_is_told_with_its_measure() -> None:
    shown = " ".join(text(of("6.12-clean.dat", "6.12-lost-lpi.dat")).split())

    assert "slower (tail)" in shown
    assert "15 of 89 in B took longer than 2 times the longest of A (9.44 ms)" in shown
    assert "coalesced 0 0.0 % 11 9.2 % +9.2 points" in shown


def test_a_median_is_told_with_its_ratio() -> None:
    a, b = (analysis_of(SAMPLES / name) for name in ("7.3-migrate.dat", "6.12-lost-records.dat"))
    shown = " ".join(text(difference(a, b)).split())

    assert "faster in B: the median of A is 9.82 times that of B" in shown
    assert "How long that takes is up to the guest: it is not counted." in shown


def test_rows_of_a_table_can_be_limited() -> None:
    different = of("6.12-clean.dat", "qemu-linux.log.zst")
    lines = [line.plain for line in difference_lines(Sheet(), different, 3)]

    assert "  3 of 29 shown, --limit 0 for all" in lines
    assert not any("shown, --limit" in line.plain for line in difference_lines(Sheet(), different, None))


def test_the_limits_that_were_set_are_said() -> None:
    analysis = analysis_of(SAMPLES / "6.12-clean.dat")
    shown = text(difference(analysis, analysis, limits=Limits(3.5, 12.5, 4, 99)))

    shown = " ".join(shown.split())
    assert (
        "counts as different from 3.5 times the other's on, if that is beyond chance, with 99 MSIs or more"
        in shown
    )
    assert "counts as different from 12.5 points on" in shown
    assert "told from 4 times the other's on" in shown


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
    assert len(document["distributions"]) == different.distributions.height > 0
    assert document["verdict"] == [told.text for told in verdict(different)]
    assert document["guests"]["verdict"] == different.guests.verdict
    assert [(each["label"], tuple(each["lines"])) for each in document["overview"]] == list(
        overview(different)
    )


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
    for told in verdict(different):
        assert told.text in said
    for section in sections(different):
        assert section.title in said
        assert section.rule in said
        for part in section.parts:
            assert all(" ".join(each.split()) in said for each in _words(part))


def _words(part: Part) -> list[str]:
    """All that a part says."""
    if isinstance(part, Told):
        return [part.text]
    if isinstance(part, Grid):
        return [part.title, *(cell for line in part.lines for cell in line.cells)]
    if isinstance(part, Stages):
        return [part.title, *(word for each in part.stages for word in (each.name, each.said))]
    sides = [side for side in (part.a, part.b) if side is not None]
    return [
        part.change,
        part.title,
        part.kind,
        part.meaning,
        *(word for each in sides for word in (each.about, each.when, each.message)),
    ]


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
    # Its colours are the report's.
    assert style.startswith(asset("base.css"))


def test_tables_of_the_page_have_heads() -> None:
    page = Page(difference_page(of("6.12-clean.dat", "6.12-lost-lpi.dat")))
    scopes = [attributes.get("scope") for tag, attributes in page.tags if tag == "th"]
    tables = sum(tag == "table" for tag, _ in page.tags)

    assert set(scopes) == {"col", "colgroup", "row"}
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
    # Severities and changes have a word and a shape.
    assert (
        '<span class="badge error"><span class="shape" aria-hidden="true">\u25c6</span>error</span>' in html
    )
    assert '<span class="badge change"><span aria-hidden="true">+</span>new in B</span>' in html
    assert 'tr.counts > :first-child::before {\n  content: "\\2260' in html


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
        base.limits, base.vms, None, None, base.recorded, base.guests, base.findings, many, base.rates, base.outcomes,
        base.latencies, base.distributions,
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


# --- drawings


def test_both_sides_of_a_stage_are_drawn_on_one_scale() -> None:
    stages = next(
        part
        for section in sections(of("6.12-clean.dat", "6.12-lost-lpi.dat"))
        for part in section.parts
        if isinstance(part, Stages)
    )
    along = scale(stages)
    one = stages.stages[1]
    drawn = distribution(one.a, one.b, along)

    assert (along.low, along.high) == (4, 10)  # 10 us to 10 s
    assert drawn.count('class="ofa"') == len(one.a.bins)
    assert drawn.count('class="ofb"') == len(one.b.bins)
    assert sum(count for _, _, count in one.a.bins) == one.a.count == 103
    assert (drawn.count('class="middle"'), drawn.count('class="late"')) == (2, 2)
    assert (
        'aria-label="distribution: A: half within 315 us, 99 % within 8.07 ms; B: half within 1.84 ms'
        in drawn
    )
    assert "style=" not in drawn
    assert re.findall(r">([^<]+)</text>", axis(along)) == ["10 us", "1 ms", "100 ms", "10 s"]


def test_bars_are_as_long_as_their_shares() -> None:
    a, b = Spread(4, 20, 200, 200, ((10, 100, 3), (100, 1000, 1))), Spread(1, 20, 20, 20, ((10, 100, 1),))
    heights = re.findall(
        r'class="of." x="[^"]+" y="[^"]+" width="[^"]+" height="([^"]+)"', distribution(a, b, Scale(1, 3))
    )

    assert [float(each) for each in heights] == pytest.approx([14.2, 4.8, 19.0], abs=0.1)
    widths = re.findall(r'width="([^"]+)" height="6"', shares(0.5, 0.25))
    assert [float(each) for each in widths] == pytest.approx([59.0, 29.5])
    assert shares(0.0, 1.0).count("<rect") == 1


def test_a_stage_that_one_side_never_had_is_drawn_all_the_same() -> None:
    none = Spread(0, None, None, None)
    drawn = distribution(none, Spread(1, 0, 0, 0, ((1, 2, 1),)), Scale(0, 1))

    assert "A: none; B: half within 0 ns" in drawn
    assert drawn.count("<rect") == 1
