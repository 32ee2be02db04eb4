"""Views of the page: searching, following a moment, addresses that lead nowhere, keys, and going back."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import SAMPLES, analysis_of
from helpers.pages import page_of, written
from helpers.tiny_analysis import tiny

from itstrace.report.commands import command_rows
from itstrace.report.layout import Sheet
from itstrace.report.story import story, told
from itstrace.units import duration, seconds

if TYPE_CHECKING:
    from helpers.browser import Browser

DOUBLE = "6.12-double-delivery.dat"
MISTAKES = "7.3-guest-mistakes.dat"
MOVED = "7.3-migrate.dat"
LOST = "6.12-lost-records.dat"


def _keys(browser: Browser, *keys: str) -> None:
    from helpers.browser import Keys  # noqa: PLC0415  selenium may not be there

    browser.press(*(getattr(Keys, key, key) for key in keys))


# --- commands


@pytest.mark.parametrize("view", ["commands", "lpis"])
def test_enter_on_a_table_without_rows_opens_nothing(browser: Browser, view: str) -> None:
    browser.open(page_of(MISTAKES), f"view={view}&q=zzz")
    browser.run("document.querySelector(`section.${arguments[0]} .scroller`).focus()", view)
    _keys(browser, "ARROW_DOWN", "ENTER", "END", "ENTER")

    assert browser.run("return location.hash") == f"#view={view}&q=zzz"
    assert browser.heard() == []


def test_commands_are_found_by_the_lpi_that_their_event_meant(browser: Browser) -> None:
    rows = command_rows(analysis_of(SAMPLES / MISTAKES))
    expected = rows.filter((rows["opcode"] == "MOVI") & (rows["intid"] == 8193))
    assert expected.height > 20
    browser.size(1280, 3000)
    browser.open(page_of(MISTAKES), "view=commands&q=movi+8193")

    shown = browser.rows(".commands .gridbox")
    assert [row[0] for row in shown] == [seconds(time, 9) for time in expected["time_ns"]]
    assert {row[5] for row in shown} == {"8193"}
    browser.size(1280, 900)
    browser.go(f"view=commands&command={expected['seq'][0]}")
    facts = dict(zip(browser.texts(".command dt"), browser.texts(".command dd"), strict=True))
    assert facts["LPI"] == "8193, which its event meant then"


def test_an_open_command_leaves_the_verdict_of_the_others_whole(browser: Browser) -> None:
    rows = command_rows(analysis_of(SAMPLES / MISTAKES))
    fault = rows.filter(rows["verdict"] == "fault")["seq"][0]
    browser.size(1280, 900)
    browser.open(page_of(MISTAKES), f"command={fault}")
    cut = """
        const box = document.querySelector(".commands .gridbox").getBoundingClientRect();
        return [...document.querySelectorAll(".commands tr[aria-rowindex] td.verdictcell")]
            .filter(cell => cell.scrollWidth > cell.clientWidth || cell.getBoundingClientRect().right > box.right + 1)
            .length"""

    assert "fault" in " ".join(browser.texts(".commands .verdictcell"))
    assert browser.run(cut) == 0
    assert "task" not in browser.texts(".commands .gridbox th")
    browser.size(2560, 900)
    assert "task" in browser.texts(".commands .gridbox th")
    browser.size(1280, 900)


# --- a moment and a life


def test_a_moment_is_followed_into_the_life_of_an_lpi_and_back(browser: Browser) -> None:
    analysis = analysis_of(SAMPLES / DOUBLE)
    time = seconds(next(one for one in analysis.findings if one.id == "ITS401").time_ns, 9)
    browser.size(1280, 900)
    browser.open(page_of(DOUBLE), "finding=ITS401")
    browser.all(".finding .facts a[href^='#lpi=']")[0].click()
    browser.wait("return document.querySelector('.life tr.chosen')")
    assert browser.run("return location.hash") == f"#lpi=0:8193&t={time}"
    marked = [row for row in browser.rows(".life .gridbox") if row[0] == time]
    assert len(marked) == len(browser.all(".life tr.chosen")) > 0
    box = "const r = arguments[0].getBoundingClientRect(); return [r.top, r.bottom, innerHeight]"
    top, bottom, height = browser.run(box, browser.all(".life tr.chosen")[0])
    assert 0 <= top < bottom <= height

    # Signs beside a time lead on; Back brings the table as it was.
    scrolled = "return document.querySelector('.life .scroller[aria-label^=life]').scrollTop"
    before = browser.run(scrolled)
    assert before > 0
    browser.run(
        "[...document.querySelectorAll('.life tr.chosen a.sign')].find(one => /timeline/.test(one.href)).click()"
    )
    browser.wait("return document.querySelector('.plot[data-drawn=single]')")
    assert browser.run("return location.hash") == f"#view=timeline&t={time}"
    browser.run("history.back()")
    browser.wait("return /^#lpi/.test(document.documentElement.dataset.ready)")
    assert browser.run(scrolled) == before


def test_back_brings_back_how_far_a_list_was_scrolled(browser: Browser) -> None:
    browser.size(1280, 900)
    browser.open(page_of(MISTAKES), "view=commands")
    browser.run("document.querySelector('.commands .scroller').scrollTop = 4000")
    browser.wait("return document.querySelector('.commands tr[aria-rowindex=\"140\"]')")
    browser.all(".commands a.time")[20].click()
    browser.wait("return /^#t=/.test(document.documentElement.dataset.ready)")
    browser.run("history.back()")
    browser.wait("return document.documentElement.dataset.ready === '#view=commands'")
    assert browser.run("return document.querySelector('.commands .scroller').scrollTop") == 4000

    # What is filtered anew begins at its beginning.
    browser.all(".commands input[type=search]")[0].send_keys("int")
    browser.wait("return /q=int/.test(document.documentElement.dataset.ready)")
    assert browser.run("return document.querySelector('.commands .scroller').scrollTop") == 0


def test_moves_whose_vcpu_is_not_told_are_told_as_the_terminal_does(browser: Browser) -> None:
    analysis = analysis_of(SAMPLES / MOVED)
    vm, intid = analysis.observations.retargets.select("vm", "intid").row(0)
    expected = [step.text for step in story(analysis, vm, intid).steps if step.kind == "retarget"]
    assert any("does not say (vCPU" in text for text in expected)
    browser.open(page_of(MOVED))
    script = "await itstrace.frames(); return itstrace.story(arguments[0], arguments[1]).map(s => [s.kind, s.text])"

    shown = [text for kind, text in browser.promised(script, vm, intid) if kind == "retarget"]
    assert shown == expected


def test_outcomes_and_vcpus_of_an_lpi_are_said_as_in_the_terminal(browser: Browser) -> None:
    analysis = analysis_of(SAMPLES / DOUBLE)
    terminal = " ".join(line.plain.strip() for line in told(Sheet(), analysis, story(analysis, 0, 8193)))
    browser.open(page_of(DOUBLE), "lpi=0:8193")
    facts = dict(
        zip(
            browser.texts(".life article > .facts dt"),
            browser.texts(".life article > .facts dd"),
            strict=True,
        )
    )

    number, outcomes = facts["MSIs"].split(": ", 1)
    assert "unknown (" in outcomes
    assert f"{number} MSIs: {outcomes}" in terminal
    assert f"delivered on {facts['delivered on']}" in terminal


# --- addresses that lead nowhere


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("finding=ITS999", "The report holds no finding ITS999."),
        ("finding=ITS401&severity=note", "ITS401 is not among those shown."),
        ("t=garbage", "\u201cgarbage\u201d is no time within the capture"),
        ("t=99999.5", "\u201c99999.5\u201d is no time within the capture"),
        ("view=timeline&t=garbage", "\u201cgarbage\u201d is no time within the capture"),
        ("view=timeline&from=1", "\u201c1\u201d is no time within the capture"),
        ("view=timeline&only=9999", "No LPI 9999 occurs in the capture."),
        ("view=timeline&only=7:8193", "No LPI 7:8193 occurs in the capture."),
        ("view=timeline&only=disk", "\u201cdisk\u201d is no LPI"),
        ("lpi=0:8193&t=garbage", "\u201cgarbage\u201d is no time within the capture"),
        ("lpi=0:4711", "The report holds no LPI 0:4711."),
    ],
)
def test_an_address_that_leads_nowhere_says_so(browser: Browser, place: str, said: str) -> None:
    browser.open(page_of(MISTAKES), place)
    assert any(
        text.startswith(said) for text in browser.texts("main .notice, main .told-now, main .empty")
    ), place
    assert browser.heard() == []


def test_a_finding_that_is_not_there_selects_no_other(browser: Browser) -> None:
    browser.open(page_of(MISTAKES), "finding=ITS999")
    assert browser.all(".finding") == []
    assert browser.all(".list [aria-current]") == []
    browser.go("finding=ITS401&severity=note")
    assert browser.texts(".finding h2 .code") == ["ITS401"]
    browser.all(".notice a")[0].click()
    browser.wait("return document.querySelector('.list [aria-current] .code')?.textContent === 'ITS401'")
    assert browser.texts(".notice") == []


# --- findings by key, and in order


def test_the_list_of_findings_is_one_stop_and_says_what_it_shows(browser: Browser) -> None:
    browser.open(page_of(MISTAKES), "view=findings")
    assert browser.run("return document.querySelectorAll('.list a[tabindex=\"0\"]').length") == 1
    browser.run("document.querySelector('.list a[tabindex=\"0\"]').focus()")
    ids = browser.texts(".list .code")
    _keys(browser, "ARROW_DOWN")
    browser.wait("return document.activeElement.querySelector('.code')?.textContent === arguments[0]", ids[1])
    assert browser.run("return document.getElementById('announce').textContent").startswith(
        f"2 of {len(ids)}: "
    )
    assert browser.texts(".finding h2 .code") == [ids[1]]
    _keys(browser, "END")
    browser.wait("return document.querySelector('.finding h2 .code').textContent === arguments[0]", ids[-1])
    _keys(browser, "ENTER")
    assert browser.run("return document.activeElement.matches('article.finding')")
    _keys(browser, "k")
    browser.wait("return document.querySelector('.finding h2 .code').textContent === arguments[0]", ids[-2])
    assert browser.run("return document.getElementById('announce').textContent").endswith(
        browser.texts(".finding h2")[0].split()[-1]
    )


def test_findings_stand_by_severity_story_and_number(browser: Browser) -> None:
    findings = {one.id: one for one in analysis_of(SAMPLES / MISTAKES).findings}
    browser.open(page_of(MISTAKES), "view=findings")
    depths = browser.run(
        "return [...document.querySelectorAll('.list li')].map(li => [li.className, li.querySelector('.code').textContent])"
    )
    roots = [findings[one] for depth, one in depths if depth == "depth0"]

    assert [one.severity.rank for one in roots] == sorted(one.severity.rank for one in roots)
    assert roots[0].id == "ITS401"
    for code, many in Counter(one.code for one in roots).items():
        if many > 1:
            numbers = [int(one.id.partition("-")[2] or 1) for one in roots if one.code == code]
            assert numbers == sorted(numbers), code


def test_one_of_several_findings_names_the_command_that_shows_it_alone(browser: Browser) -> None:
    browser.open(page_of(MISTAKES), "finding=ITS102-3")
    assert browser.texts(".finding .shell code")[0].endswith(f"{MISTAKES} --select ITS102-3")
    browser.go("finding=ITS102")
    assert browser.texts(".finding .shell code")[0].endswith("--select ITS102-1")


def test_a_finding_about_nothing_in_particular_says_what_it_is(browser: Browser) -> None:
    message = next(one.message for one in analysis_of(SAMPLES / DOUBLE).findings if one.code == "ITS903")
    browser.open(page_of(DOUBLE), "finding=ITS903")
    assert "about" not in browser.texts(".finding > .facts dt")
    assert message in browser.texts(".list a[aria-current]")[0]


# --- tables


def test_a_change_says_which_command_it_was(browser: Browser) -> None:
    rows = command_rows(analysis_of(SAMPLES / MISTAKES))
    move = rows.filter((rows["opcode"] == "MOVI") & (rows["verdict"] == "ok")).row(3, named=True)
    browser.open(page_of(MISTAKES), f"t={seconds(move['time_ns'], 9)}")
    assert f"Changed at this very moment by {move['text']}." in browser.texts(".told-now")[0]


def test_what_the_end_of_a_vm_took_away_says_so_unstruck(browser: Browser) -> None:
    browser.open(page_of(MISTAKES), "t=-0.001")
    assert "as the VM was torn down" in browser.texts(".told-now")[0]
    gone = browser.rows(".tablebox.devices")
    assert {row[3] for row in gone} == {"VM torn down"}
    script = "return getComputedStyle(document.querySelector('.tablebox.devices .row-gone td:nth-child(arguments)'))"
    struck = script.replace("arguments", "{}") + ".textDecorationLine"
    assert browser.run(struck.format(1)) == "line-through"
    assert browser.run(struck.format(4)) == "none"


def test_boxes_stand_in_the_same_order_at_any_width_and_short_ones_do_not_scroll(browser: Browser) -> None:
    order = """
        return [...document.querySelectorAll(".tablebox")].map(box => [box.getBoundingClientRect(), box])
            .sort(([a], [b]) => a.top - b.top || a.left - b.left).map(([, box]) => box.classList[1])"""
    seen = []
    for width in (1280, 2560):
        browser.size(width, 900)
        browser.open(page_of(MISTAKES), "t=+20")
        seen.append(browser.run(order))
        scrolling = "return [...document.querySelectorAll('.tablebox .scroller')].filter(b => b.scrollHeight > b.clientHeight)"
        assert browser.run(f"{scrolling}.length") == 0
    browser.size(1280, 900)
    assert seen[0] == seen[1] == ["devices", "collections", "events", "targets", "configuration"]


# --- the timeline


def test_only_one_lpi_leaves_its_own_commands(browser: Browser) -> None:
    analysis = analysis_of(SAMPLES / MISTAKES)
    finding = next(one for one in analysis.findings if one.id == "ITS401")
    around = (finding.time_ns or 0) - 10_000_000, (finding.time_ns or 0) + 10_000_000
    rows = command_rows(analysis)
    rows = rows.filter(rows["time_ns"].is_between(*around))
    stretch = f"view=timeline&from={seconds(around[0], 9)}&to={seconds(around[1], 9)}"
    browser.open(page_of(MISTAKES), stretch)
    counted = "return Number(/([\\d,]+) commands?/.exec(document.querySelector('.level').textContent)[1])"
    assert browser.run(counted) == rows.height
    browser.go(f"{stretch}&only=0:8193")
    mine = rows.filter(rows["intid"] == 8193).height
    assert 0 < mine < rows.height
    browser.wait(f"{counted} === arguments[0]", mine)
    browser.go(f"{stretch}&only=8193")
    assert browser.run(counted) == mine
    assert browser.texts(".timeline .legend a") == ["8193"]


def test_back_leaves_a_zoom_by_dragging(browser: Browser) -> None:
    from selenium.webdriver import ActionChains  # noqa: PLC0415  may not be there

    browser.size(1280, 900)
    browser.open(page_of(MISTAKES), "view=timeline")
    plot = browser.all(".timeline .plot")[0]
    ActionChains(browser.driver).move_to_element_with_offset(plot, -100, -40).click_and_hold().move_by_offset(
        200, 0
    ).release().perform()
    browser.wait("return /from=/.test(document.documentElement.dataset.ready)")
    assert browser.texts(".plotly-notifier") == []
    browser.run("history.back()")
    browser.wait("return document.documentElement.dataset.ready === '#view=timeline'")
    analysis = analysis_of(SAMPLES / MISTAKES)
    whole = f"{seconds(analysis.start_ns, 6)} to {seconds(analysis.end_ns, 6)} s"
    assert any(text.startswith(whole) for text in browser.texts(".plotbar .mono"))


def test_lost_records_are_hatched_and_say_their_cpu(browser: Browser) -> None:
    gaps = analysis_of(SAMPLES / LOST).gaps
    browser.open(page_of(LOST), "view=timeline")
    browser.wait("return document.querySelector('.plot[data-drawn]')")
    traces = browser.run(
        "return document.querySelector('.plot').data.filter(one => one.marker?.pattern?.shape === '/')"
        ".map(one => one.hovertext)"
    )
    assert len(traces) == 4
    for texts in traces:
        assert len(texts) == gaps.height
        assert sorted(int(text.split("on CPU ")[1].split("<")[0]) for text in texts) == sorted(gaps["cpu"])


def test_labels_stand_beside_the_data(browser: Browser) -> None:
    browser.size(1280, 900)
    browser.open(page_of(MISTAKES), "view=timeline")
    browser.wait("return document.querySelector('.plot .annotation')")
    edges = browser.run(
        "return [Math.max(...[...document.querySelectorAll('.plot .annotation text')]"
        ".map(one => one.getBoundingClientRect().right)),"
        " Math.min(...[...document.querySelectorAll('.plot .plot path.xgrid, .plot .draglayer .nsewdrag')]"
        ".map(one => one.getBoundingClientRect().left))]"
    )
    assert edges[0] < edges[1]


# --- small things


def test_a_capture_that_is_called_as_they_all_are_shows_its_folder(browser: Browser) -> None:
    browser.open(page_of(MISTAKES))
    assert browser.texts(".tools .file") == [MISTAKES]
    analysis = tiny()
    analysis.info = replace(analysis.info, path=Path("captures/boot-6.12/trace.dat"))
    browser.open(written("folder", analysis))
    assert browser.texts(".tools .file") == ["boot-6.12/trace.dat"]


def test_lpis_with_the_worst_findings_stand_first_when_sorted_by_them(browser: Browser) -> None:
    analysis = analysis_of(SAMPLES / MISTAKES)
    worst: dict[int, int] = {}
    for one in analysis.findings:
        if one.intid is not None:
            worst[one.intid] = min(worst.get(one.intid, 9), one.severity.rank)
    browser.open(page_of(MISTAKES), "view=lpis")
    next(one for one in browser.all(".lpis th button") if one.text == "findings").click()
    shown = [int(row[0]) for row in browser.rows(".lpis .gridbox")]
    ranks = [worst.get(intid, 9) for intid in shown]
    assert ranks == sorted(ranks)


def test_a_link_to_what_is_shown_is_copied_whole(browser: Browser) -> None:
    browser.open(page_of(DOUBLE), "finding=ITS401&severity=error")
    browser.run(
        "navigator.clipboard.writeText = text => { globalThis.copied = text; return Promise.resolve() }"
    )
    button = browser.all(".finding .headside button")[0]
    assert button.text == "copy link"
    button.click()
    browser.wait("return globalThis.copied")
    assert browser.run("return copied") == f"{page_of(DOUBLE).as_uri()}#finding=ITS401"
    browser.wait("return document.querySelector('.finding .headside button').textContent === 'copied'")


def test_latencies_are_told_to_the_nanosecond_in_columns_of_their_own(browser: Browser) -> None:
    browser.open(page_of(DOUBLE), "view=timeline&show=latency")
    browser.wait("return document.querySelector('#latency tbody td')")
    assert browser.texts("#latency th")[5:8] == ["p50, ns", "p99, ns", "max, ns"]
    script = "return [...document.querySelectorAll('#latency tbody td:nth-child(6)')].map(one => getComputedStyle(one).textAlign)"
    assert set(browser.run(script)) == {"right"}
    for row in browser.rows("#latency .gridbox"):
        assert [duration(int(cell.replace(",", ""))) for cell in row[5:8]] == row[2:5]


@pytest.mark.parametrize(
    ("place", "view", "button"),
    [
        ("lpi=0:8193", "lpis", "close"),
        ("lpi=0:8193&q=8", "lpis", "close"),
        ("command=2592", "commands", "close"),
        ("view=commands&op=MOVI&command=2592", "commands", "close"),
        ("t=1350.325229", "tables", "the end"),
    ],
)
def test_closing_a_card_stays_in_its_section(browser: Browser, place: str, view: str, button: str) -> None:
    browser.open(page_of("6.12-double-delivery.dat"), place)
    (found,) = [one for one in browser.all(f"#view-{view} button") if one.text == button]
    found.click()
    browser.wait("return location.hash !== arguments[0]", f"#{place}")

    assert browser.all(f"#view-{view}")
    assert not browser.all("#view-verdict")


def test_a_time_from_the_start_may_be_written_in_an_address(browser: Browser) -> None:
    browser.open(page_of("6.12-double-delivery.dat"), "t=+0.5")

    assert browser.run("return document.querySelector('#view-tables input').value") == "1345.786619088"
    assert not browser.all("#view-tables .notice")
