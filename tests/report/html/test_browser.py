"""Pages in a real browser: they open, say nothing, ask for nothing, and show what the analysis says."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))

import make_capture
from conftest import SAMPLES, analysis_of
from helpers import busy_capture
from helpers.pages import page_of, written
from helpers.tiny_analysis import hostile, tiny
from helpers.tiny_capture import HOSTILE

from itstrace import analyze
from itstrace.findings import KnownBug, Subject
from itstrace.report.html import Assets
from itstrace.report.json import analysis_document
from itstrace.report.story import known_lpis, story
from itstrace.report.text import hexa, known
from itstrace.units import duration, seconds

if TYPE_CHECKING:
    from helpers.browser import Browser

SAMPLE_NAMES = sorted(
    path.name
    for path in SAMPLES.iterdir()
    if path.name.endswith((".dat", ".txt.zst", ".data.zst", ".log.zst"))
)
VIEWS = ("verdict", "findings", "timeline", "tables", "lpis", "commands", "coverage")
#: Captures whose pages are compared with the JSON, number by number.
COMPARED = ("6.12-double-delivery.dat", "7.3-guest-mistakes.dat", "6.12-lost-records.dat")
DOUBLE = "6.12-double-delivery.dat"
MISTAKES = "7.3-guest-mistakes.dat"


@pytest.mark.parametrize("name", SAMPLE_NAMES)
def test_a_page_opens_without_a_word_and_without_a_request(browser: Browser, name: str) -> None:
    browser.requests()
    browser.open(page_of(name))
    for view in VIEWS:
        browser.go(f"view={view}")
        assert browser.texts(f"#view-{view}")[0]

    assert browser.heard() == []
    assert browser.requests() == []


def test_a_page_of_a_million_msis_opens_and_answers(
    browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The whole way: a capture of 13 million records, its page, and what a reader does with it."""
    folder = tmp_path_factory.mktemp("million")
    base, capture = busy_capture.write(folder / "base.dat"), folder / "many.dat"
    once = analyze(base)
    copies = -(-1_000_000 // once.observations.injections.height)
    make_capture.make(capture, copies * int(once.counts["records"].sum()), base)
    analysis = analyze(capture)
    capture.unlink()
    assert analysis.observations.injections.height >= 1_000_000
    path = written("million", analysis)
    assert path.stat().st_size < 10_000_000

    browser.requests()
    browser.open(path)
    assert f"{analysis.observations.injections.height:,}" in browser.texts(".tile .count")
    for view in VIEWS:
        browser.go(f"view={view}")
    shown = f"of {analysis.observations.commands.height:,} commands shown"
    browser.go("view=commands&q=mapti+0x3")
    assert any(shown in text for text in browser.texts(".capped"))
    assert all(row[4].startswith("MAPTI DeviceID 0x3") for row in browser.rows(".commands .scroller"))
    browser.go("t=110.5")
    assert browser.texts(".tablebox.events h2")[0].startswith("Events")
    tables = analysis.at(110_500_000_000)
    assert tables.events is not None
    assert browser.texts(".tablebox.events h2 .dim") == [str(tables.events.height)]
    browser.go("lpi=0:8200")
    assert "itstrace lpi" in browser.texts(".life .shell code")[0]
    assert browser.heard() == []
    assert browser.requests() == []


def test_the_first_screen_tells_the_verdict_and_draws_the_worst(browser: Browser) -> None:
    browser.size(1280, 900)
    browser.open(page_of(DOUBLE))
    browser.wait("return document.querySelector('.worst svg.path .held')")

    assert browser.texts("h1")[0].startswith("KVM had one LPI live on two vCPUs at once (ITS401)")
    assert browser.texts(".tile")[0].split() == ["\u25c6", "1", "error"]
    assert "list register of vCPU 1" in browser.texts(".told")[0]
    bottom = browser.run("return document.querySelector('.worst svg.path').getBoundingClientRect().bottom")
    assert bottom < 900


# --- what it shows is what the JSON says


def _shown(row: list[str]) -> str:
    return " | ".join(row)


@pytest.mark.parametrize("name", COMPARED)
def test_lpis_are_those_of_the_json(browser: Browser, name: str) -> None:
    document = analysis_document(analysis_of(SAMPLES / name))
    browser.size(1280, 3000)
    browser.open(page_of(name), "view=lpis")
    rows = {int(row[0].replace(",", "")): row for row in _scrolled(browser, ".lpis .gridbox .scroller")}

    for lpi in itertools.chain.from_iterable(vm["lpis"] for vm in document["vms"]):
        cells = rows[lpi["intid"]]
        latency = lpi["latency_ns"]
        took = [duration(latency[each]) for each in ("p50", "p99", "max")] if latency else ["", "", ""]
        counts = [_number(lpi[each]) for each in ("injections", "deliveries", "coalesced")]
        assert cells[4:10] == [*counts, *took], _shown(cells)
        assert cells[11:13] == [known(lpi["target_vcpu"]), known(lpi["enabled"])], _shown(cells)


@pytest.mark.parametrize("name", COMPARED)
def test_findings_are_those_of_the_json(browser: Browser, name: str) -> None:
    document = analysis_document(analysis_of(SAMPLES / name))
    browser.open(page_of(name), "view=findings")
    counts = [document["summary"]["by_severity"][each] for each in ("error", "warning", "note")]
    ids = browser.texts(".list .code")
    assert len(ids) == len(document["findings"]) == sum(counts)

    for finding, analyzed in zip(document["findings"], analysis_of(SAMPLES / name).findings, strict=True):
        browser.go(f"finding={analyzed.id}")
        assert browser.texts(".finding .message") == [" ".join(finding["message"].split())]
        evidence = browser.rows(".finding .scroller[aria-label^=evidence]")
        expected = [(seconds(e["time_ns"], 9), e["event"]) for e in finding["evidence"]]
        assert [(row[1], row[4]) for row in evidence] == expected[:40]
        facts = dict(
            zip(browser.texts(".finding > .facts dt"), browser.texts(".finding > .facts dd"), strict=True)
        )
        assert facts.get("how often", "1 time").split()[0] == f"{finding['count']:,}"
        if finding["time_ns"] is not None:
            assert facts["when"].startswith(seconds(finding["time_ns"], 9))


@pytest.mark.parametrize("name", COMPARED)
def test_the_verdict_counts_as_the_json_does(browser: Browser, name: str) -> None:
    summary = analysis_document(analysis_of(SAMPLES / name))["summary"]
    browser.open(page_of(name))
    counts = [int("".join(filter(str.isdigit, text))) for text in browser.texts(".tile .count")]

    severities = [summary["by_severity"][each] for each in ("error", "warning", "note")]
    commands = sum(summary["commands"].values())
    assert counts == [*severities, summary["injections"], summary["deliveries"], commands]


@pytest.mark.parametrize("name", COMPARED)
def test_tables_are_those_of_the_json_at_the_end_and_at_any_time(browser: Browser, name: str) -> None:
    analysis = analysis_of(SAMPLES / name)
    browser.size(1280, 3000)
    browser.open(page_of(name), "view=tables")
    _same_tables(browser, analysis_document(analysis)["vms"][0])
    span = (analysis.end_ns or 0) - (analysis.start_ns or 0)
    for share in (0.31, 0.55, 0.8):
        time_ns = (analysis.start_ns or 0) + int(span * share)
        browser.go(f"t={seconds(time_ns, 9)}")
        tables = analysis.at(time_ns)
        assert tables.devices is not None
        assert tables.collections is not None
        assert tables.events is not None
        assert tables.lpis is not None
        document = {
            "its": [
                {
                    "devices": [
                        {**row, "itt_gpa": hexa(row["itt_gpa"])} for row in tables.devices.to_dicts()
                    ],
                    "collections": tables.collections.to_dicts(),
                    "events": tables.events.to_dicts(),
                }
            ],
            "lpis": tables.lpis.to_dicts(),
        }
        _same_tables(browser, document)


def _same_tables(browser: Browser, vm: dict[str, Any]) -> None:
    its = vm["its"][0]
    devices = [row[:3] for row in _live(browser, "devices")]
    assert devices == [
        [
            hexa(d["device_id"]),
            _number(None if d["event_bits"] is None else 1 << d["event_bits"]),
            d["itt_gpa"] or "?",
        ]
        for d in its["devices"]
    ]
    assert [row[:1] for row in _live(browser, "collections")] == [
        [str(c["icid"])] for c in its["collections"]
    ]
    lpis = {lpi["intid"]: lpi for lpi in vm["lpis"]}
    events = _live(browser, "events")
    for row, event in zip(events, its["events"], strict=True):
        lpi = lpis.get(event["intid"], {})
        assert row[:3] == [hexa(event["device_id"]), str(event["event_id"]), known(event["intid"])]
        assert row[5] == known(lpi.get("enabled"))
        assert row[6] == ("?" if lpi.get("priority") is None else f"0x{lpi['priority']:02x}")
        assert row[7] == known(lpi.get("pending"))
    targets = {int(row[0]): row[1] for row in _live(browser, "targets")}
    assert targets == {
        i: str(lpi["target_vcpu"]) for i, lpi in lpis.items() if lpi["target_vcpu"] is not None
    }


def _live(browser: Browser, box: str) -> list[list[str]]:
    """Rows of a table of the tables' view, without those that are gone."""
    return [row for row in _scrolled(browser, f".tablebox.{box} .scroller") if "gone" not in row[-1]]


@pytest.mark.parametrize("name", COMPARED)
def test_stories_are_told_in_the_words_of_the_terminal(browser: Browser, name: str) -> None:
    analysis = analysis_of(SAMPLES / name)
    browser.open(page_of(name))
    for vm, intid in known_lpis(analysis).iter_rows():
        script = (
            "await itstrace.frames(); return itstrace.story(arguments[0], arguments[1])"
            ".map(step => [itstrace.seconds(step.time), step.kind, step.text])"
        )
        told = browser.promised(script, vm, intid)
        expected = [
            [seconds(step.time_ns, 9), step.kind, step.text] for step in story(analysis, vm, intid).steps
        ]
        assert sorted(told) == sorted(expected), f"LPI {intid}"
        assert [each[0] for each in told] == [each[0] for each in expected]


@pytest.mark.parametrize("name", COMPARED)
def test_commands_are_all_there_decoded(browser: Browser, name: str) -> None:
    analysis = analysis_of(SAMPLES / name)
    browser.size(1280, 900)
    browser.open(page_of(name), "view=commands")
    rows = _scrolled(browser, ".commands .scroller")

    verdicts = analysis.history.verdicts
    assert [row[4] for row in rows] == verdicts["text"].to_list()
    assert [row[6].split()[0 if row[6].startswith("ok") else 1] for row in rows] == verdicts[
        "verdict"
    ].to_list()
    assert [row[0] for row in rows] == [seconds(t, 9) for t in analysis.observations.commands["time_ns"]]


def _scrolled(browser: Browser, selector: str) -> list[list[str]]:
    """All rows of a table that draws only those in view."""
    script = """
        const scroller = [...document.querySelectorAll(arguments[0])].find(one => one.checkVisibility());
        const found = new Map();
        for (let top = 0; ; top += 300) {
            scroller.scrollTop = top;
            await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
            for (const row of scroller.querySelectorAll("tbody tr[aria-rowindex]"))
                found.set(Number(row.getAttribute("aria-rowindex")), [...row.cells].map(cell => cell.innerText.trim()));
            if (top > scroller.scrollHeight) break;
        }
        scroller.scrollTop = 0;
        return [...found].sort((a, b) => a[0] - b[0]).map(([, cells]) => cells);
    """
    return [[str(cell) for cell in row] for row in browser.promised(script, selector)]


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


# --- finding one's way


def test_filters_narrow_the_findings(browser: Browser) -> None:
    findings = analysis_of(SAMPLES / MISTAKES).findings
    browser.open(page_of(MISTAKES), "view=findings&severity=warning")
    assert len(browser.texts(".list .code")) == sum(str(each.severity) == "warning" for each in findings)
    browser.go("view=findings&code=ITS104")
    assert set(browser.texts(".list .code")) == {each.id for each in findings if each.code == "ITS104"}
    search = browser.all(".findings input[type=search]")[0]
    search.send_keys("its401")
    browser.wait("return /text=its401/.test(location.hash)")
    assert browser.texts(".list .code") == []
    assert "no finding fits" in browser.texts(".list")[0]


def test_permalinks_lead_to_findings_lpis_commands_and_times(browser: Browser) -> None:
    browser.open(page_of(DOUBLE), "finding=ITS401")
    assert browser.texts(".finding h2")[0].endswith("ITS401 double-pending")
    browser.open(page_of(DOUBLE), "lpi=0:8193")
    assert browser.texts(".life h2")[0].startswith("LPI 8193")
    browser.open(page_of(DOUBLE), "t=1350.325229&view=tables")
    assert "1350.325229499" in browser.texts(".told-now")[0]
    assert any(row[0] == "8193" and row[-1] == "~ changed" for row in browser.rows(".tablebox.targets"))
    seq = analysis_of(SAMPLES / DOUBLE).findings[0].seqs[2]
    browser.open(page_of(DOUBLE), f"command={seq}")
    fields = {row[0]: row[3] for row in browser.rows(".command .scroller")}
    assert fields == {"opcode": "MOVI", "DeviceID": "0x123", "EventID": "1", "ICID": "0"}


def test_everything_is_linked(browser: Browser) -> None:
    browser.open(page_of(DOUBLE), "finding=ITS401")
    browser.all(".finding .facts a[href^='#lpi=']")[0].click()
    browser.wait(
        "return location.hash.startsWith('#lpi=0:8193&t=') && document.querySelector('.life .chosen')"
    )
    browser.all(".life .kind.command")  # the story holds commands
    browser.run(
        "document.querySelector('.life td a[href^=\"#command=\"]').click()"
    )  # it may be scrolled out of sight
    browser.wait(
        "return document.querySelector('.commands .command') && document.querySelector('.commands .chosen')"
    )
    browser.all(".command .facts a.time")[0].click()
    browser.wait("return /^#t=/.test(location.hash) && document.querySelector('.tablebox')")
    assert browser.heard() == []


def test_the_slider_moves_through_the_tables(browser: Browser) -> None:
    browser.open(page_of(DOUBLE), "view=tables")
    slider = browser.all(".timebar input[type=range]")[0]
    browser.run(
        "arguments[0].value = 0; arguments[0].dispatchEvent(new Event('input')); "
        "arguments[0].dispatchEvent(new Event('change'))",
        slider,
    )
    start_ns = analysis_of(SAMPLES / DOUBLE).start_ns
    browser.wait("return location.hash === arguments[0]", f"#t={seconds(start_ns, 9)}")
    assert browser.texts(".tablebox.devices h2") == ["Devices 0"]
    for button in browser.all(".timebar button"):
        if button.text.startswith("change"):
            button.click()
    browser.wait(
        "return !/Devices 0/.test(document.querySelector('.tablebox.devices h2').innerText) || "
        "!/Collections 0/.test(document.querySelector('.tablebox.collections h2').innerText)"
    )
    assert browser.texts(".change.new")


def test_keys_lead_everywhere(browser: Browser) -> None:
    browser.open(page_of(MISTAKES))
    browser.press("2")
    browser.wait("return location.hash === '#view=findings' && document.querySelector('.finding')")
    first = browser.texts(".finding h2")
    browser.press("j")
    browser.wait("return document.querySelector('.finding h2').innerText !== arguments[0]", first[0])
    browser.press("6")
    browser.wait("return location.hash === '#view=commands' && document.querySelector('.commands .scroller')")
    browser.press("/")
    browser.press("mapti")
    browser.wait("return /q=mapti/.test(location.hash)")
    assert all(text.startswith("MAPTI") for text in browser.texts(".commands tbody td:nth-child(5)"))
    browser.run("document.activeElement.blur(); document.querySelector('.commands .scroller').focus()")
    from helpers.browser import Keys  # noqa: PLC0415  selenium may not be there

    browser.press(Keys.ARROW_DOWN, Keys.ENTER)
    browser.wait("return /command=/.test(location.hash) && document.querySelector('.aside .command')")
    browser.press("?")
    assert browser.texts("dialog h2") == ["Keys"]
    browser.press(Keys.ESCAPE)
    browser.press("d")
    assert browser.run("return document.documentElement.dataset.theme") == "dark"
    browser.press("d")


def test_the_timeline_zooms_to_single_events(browser: Browser) -> None:
    browser.size(1280, 900)
    browser.open(page_of(MISTAKES), "view=timeline")
    assert browser.run("return document.querySelector('.plot').dataset.drawn") == "bins"
    plot = browser.all(".plot")[0]
    for _ in range(9):
        plot.send_keys("+")
    browser.wait("return document.querySelector('.plot').dataset.drawn === 'single'")
    browser.wait("return /from=/.test(location.hash)")
    assert browser.heard() == []


# --- whatever the capture holds


def test_hostile_text_stays_text(browser: Browser) -> None:
    browser.requests()
    path = written("hostile", hostile(), {4711: HOSTILE, 4712: HOSTILE})
    for view in VIEWS:
        browser.open(path, f"view={view}")
        ours = browser.run(
            "return document.body.querySelectorAll('script:not([id]), img, iframe, object').length"
        )
        assert ours == 1  # the page's own script
    browser.open(path, "view=findings")
    assert "<script>" in browser.texts(".finding .message")[0]
    assert "\\u202e" in browser.texts(".finding .message")[0]
    assert "\u202e" not in browser.run("return document.body.innerText")
    browser.open(path, "view=commands")
    assert all("<script>" in row[2] for row in browser.rows(".commands .scroller"))
    assert browser.heard() == []
    assert browser.requests() == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_barrier(browser: Browser, scheme: str) -> None:
    pytest.importorskip("axe_core_python", reason="axe-core-python is not installed")
    from axe_core_python.selenium import Axe  # noqa: PLC0415  may not be there

    browser.scheme(scheme)
    browser.size(1280, 900)
    for place in (
        "view=verdict",
        "finding=ITS401",
        "view=timeline",
        "view=tables",
        "lpi=0:8193",
        "view=commands",
        "view=coverage",
    ):
        browser.open(page_of(DOUBLE), place)
        found = Axe().run(browser.driver)
        bad = [one for one in found["violations"] if one["impact"] in {"serious", "critical"}]
        assert [(one["id"], one["nodes"][0]["html"][:200]) for one in bad] == [], place
    browser.scheme("light")


@pytest.mark.parametrize("width", [1280, 2560])
def test_nothing_is_wider_than_the_window(browser: Browser, width: int) -> None:
    browser.size(width, 900)
    for view in VIEWS:
        browser.open(page_of(MISTAKES), f"view={view}")
        assert browser.run("return document.documentElement.scrollWidth") <= width, view
    browser.size(1280, 900)


def test_paper_holds_the_verdict_and_every_finding(browser: Browser) -> None:
    browser.open(page_of(MISTAKES))
    browser.promised("await itstrace.frames()")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    browser.wait("return document.getElementById('paper')")
    count = browser.run("return document.querySelectorAll('#paper article.finding').length")
    assert count == len(analysis_of(SAMPLES / MISTAKES).findings)
    assert browser.run("return document.querySelector('#paper h1') !== null")


def test_paper_holds_the_one_finding_that_the_address_names(browser: Browser) -> None:
    browser.open(page_of(MISTAKES), "finding=ITS106")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    browser.wait("return document.getElementById('paper')")

    names = browser.run(
        "return [...document.querySelectorAll('#paper article.finding')].map(one => one.ariaLabel)"
    )
    assert names == ["ITS106 duplicate-lpi"]
    assert "7.3.4" in browser.run("return document.querySelector('#paper').textContent")


def test_a_table_is_printed_as_it_is_seen(browser: Browser) -> None:
    browser.open(page_of(DOUBLE), "view=commands&q=mapc")
    browser.run("dispatchEvent(new Event('beforeprint'))")
    browser.wait("return document.documentElement.hasAttribute('data-print-as-seen')")
    media: dict[str, Any] = {"media": "print"}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        shown = browser.rows(".commands .scroller")
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    # Without the columns that paper has no room for.
    assert [row[-3].split()[0] for row in shown if len(row) > 1] == ["MAPC"] * 5
    assert not browser.all("#paper")


@pytest.mark.parametrize("assets", [Assets.DIRECTORY, Assets.INLINE])
def test_a_page_that_the_command_wrote_works(browser: Browser, tmp_path: Path, assets: Assets) -> None:
    """Also one whose scripts stand in a folder beside it, under a name that a link must not break."""
    path = tmp_path / "my report & 100% #1.html"
    arguments = ["analyze", str(SAMPLES / DOUBLE), "--html", str(path), "--assets", assets]
    subprocess.run([sys.executable, "-m", "itstrace.cli", *arguments], capture_output=True, check=True)
    assert (tmp_path / "my report & 100% #1.files").exists() == (assets is Assets.DIRECTORY)

    browser.requests()
    browser.open(path, "view=timeline")
    browser.wait("return document.querySelector('.plot[data-drawn]')")
    assert "qemu-system-aar" in _commands_of(browser)
    assert browser.heard() == []
    assert browser.requests() == []


def _commands_of(browser: Browser) -> str:
    browser.go("view=commands")
    return browser.texts(".commands .scroller")[0]


def test_a_finding_shows_all_that_it_says_and_stands_with_what_follows_from_it(browser: Browser) -> None:
    analysis = tiny()
    cause = replace(
        analysis.findings[0],
        id="ITS401",
        mechanism="flushed while in a list register",
        worst="vCPU 0 waited 1.44 s at 100.001700",
        guest_saw="The disk stalled.",
        suspect=("vgic_flush_pending_lpis", "vgic_v3_fold_lr_state"),
        known_bugs=(KnownBug("Flush leaves list registers", "v7.9", "CVE-2026-0000"),),
        doubt="Records were lost just before.",
        capture_next="fold_lr on all CPUs",
        subjects=(
            Subject(8, 0, 8192, (0, 1), 3, 100_001_700_499, 100_002_000_500),
            Subject(9, 1, 8193, (1,), 2, 100_001_800_000, 100_001_900_000),
        ),
        leads_to=("ITS303",),
    )
    other = replace(analysis.findings[1], id="ITS901")
    effect = replace(
        analysis.findings[0], id="ITS303", code="ITS303", name="duplicate-delivery", caused_by=("ITS401",)
    )
    analysis.findings = [cause, other, effect]
    browser.open(written("story", analysis), "finding=ITS401")

    assert browser.texts(".list .code") == ["ITS401", "ITS303", "ITS901"]
    assert browser.texts(".list .depth1 .code") == ["ITS303"]
    facts = dict(
        zip(browser.texts(".finding > .facts dt"), browser.texts(".finding > .facts dd"), strict=True)
    )
    assert facts == {
        "about": "LPI 8192 (device 0x8, event 0) and 1 other, vCPUs 1 and 0",
        "when": "100.001700499 to 100.002000500 (300 us)",
        "how often": "5 times",
        "what went wrong": cause.mechanism,
        "worst": cause.worst,
        "the guest saw": cause.guest_saw,
        "suspect": "vgic_flush_pending_lpis, vgic_v3_fold_lr_state",
        "known": "Flush leaves list registers (fixed: v7.9; CVE-2026-0000)",
        "doubt": cause.doubt,
        "record next": cause.capture_next,
    }
    assert [row[2] for row in browser.rows(".finding .scroller[aria-label^='what ITS401 hit']")] == [
        "8192",
        "8193",
    ]
    assert browser.texts(".finding .storyline") == ["Led to ITS303 duplicate-delivery."]
    assert browser.texts(".finding .shell code") == [
        "itstrace analyze tiny.dat --select ITS401",
        "itstrace lpi tiny.dat 8192",
        "itstrace tables tiny.dat --at 100.001700499",
    ]
    browser.all(".storyline a")[0].click()
    browser.wait("return location.hash === '#finding=ITS303'")
    browser.go("view=verdict")
    assert browser.texts(".told")[0].endswith(f"{cause.worst}.")


def test_a_wall_clock_is_shown_to_the_nanosecond(browser: Browser, tmp_path: Path) -> None:
    """A time since 1970 does not fit a double: what is shown must be made of integers."""
    path = page_of(DOUBLE)
    start = analysis_of(SAMPLES / DOUBLE).start_ns
    moved = tmp_path / "wall.html"
    wall = 1_764_080_000_123_456_789
    text = path.read_text(encoding="utf-8").replace(f'"origin_ns":"{start}"', f'"origin_ns":"{wall}"')
    moved.write_text(text, encoding="utf-8")
    browser.open(moved, "view=commands")

    commands = analysis_of(SAMPLES / DOUBLE).observations.commands["time_ns"].to_list()
    shown = [row[0] for row in browser.rows(".commands .scroller")]
    assert shown == [seconds(time - (start or 0) + wall, 9) for time in commands[: len(shown)]]
    offset = browser.run("return itstrace.parseTime(arguments[0])", shown[3])
    assert offset == commands[3] - (start or 0)
