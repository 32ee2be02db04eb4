"""The report for a person: right, readable at any width, plain in a pipe, safe whatever the capture holds."""

from __future__ import annotations

import json
import os
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.tiny_analysis import CAUSE, DEAD, DOUBLE, STALE, TWICE, hostile, story, tiny

from itstrace import Confidence, Kind, Severity
from itstrace.baseline import Compared, compare, read_baseline
from itstrace.findings import KnownBug, SkippedRule, Subject
from itstrace.report.finding import EFFECTS_SHOWN, EVIDENCE_SHOWN, IN_FULL
from itstrace.report.json import analysis_document
from itstrace.report.layout import Sheet
from itstrace.report.terminal import report
from itstrace.rules import Plugin
from itstrace.schemas import GAPS

if TYPE_CHECKING:
    from itstrace import Analysis

GOLDEN = Path(__file__).parent / "golden"
_RULES = 21


def _why(code: str) -> str:
    return f"Because of {code}: the guest waits for an interrupt that never comes, and the disk stalls."


def _lines(sheet: Sheet, analysis: Analysis, against: Compared | None = None) -> list[str]:
    return [line.plain for line in report(sheet, analysis, _why, _RULES, against)]


def _verdict(analysis: Analysis, against: Compared | None = None) -> str:
    lines = _lines(Sheet(), analysis, against)
    return " ".join(lines[1 : lines.index("Capture") - 1])


@pytest.mark.parametrize(
    ("name", "sheet"),
    [
        ("80", Sheet(80, fine=True)),
        ("160", Sheet(160, fine=True)),
        ("ascii-80", Sheet(80)),
        ("pipe", Sheet()),
    ],
)
def test_the_report_is_what_it_was(name: str, sheet: Sheet) -> None:
    """Kept in golden/; written anew by UPDATE_GOLDEN=1, to be looked at before it is committed."""
    _as_before(f"report-{name}.txt", _lines(sheet, tiny()))


@pytest.mark.parametrize(("name", "sheet"), [("80", Sheet(80, fine=True)), ("pipe", Sheet())])
def test_a_story_is_told_as_it_was(name: str, sheet: Sheet) -> None:
    lines = _lines(sheet, story())
    begin = next(at for at, line in enumerate(lines) if line.startswith("Findings"))
    end = next(at for at, line in enumerate(lines) if line.startswith("Tables"))

    _as_before(f"story-{name}.txt", [*lines[: lines.index("", 1)], "", *lines[begin:end]])


def _as_before(name: str, lines: list[str]) -> None:
    text = "\n".join(lines) + "\n"
    golden = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(text, encoding="utf-8")

    assert text == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [60, 80, 100, 160, 250])
@pytest.mark.parametrize("name", ["7.3-guest-mistakes.dat", "6.12-double-delivery.dat", "7.3-migrate.dat"])
def test_no_line_is_wider_than_the_terminal(name: str, width: int) -> None:
    lines = list(report(Sheet(width, fine=True), analysis_of(SAMPLES / name), _why, _RULES))

    assert max(line.cell_len for line in lines) <= width
    assert all("\n" not in line.plain for line in lines)


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_no_line_of_a_story_is_wider_than_the_terminal(width: int) -> None:
    lines = list(report(Sheet(width, fine=True), story(), _why, _RULES, _against(story(), "ITS901")))

    assert max(line.cell_len for line in lines) <= width


def test_a_pipe_gets_ascii_and_whole_evidence() -> None:
    lines = _lines(Sheet(), tiny())

    assert "\n".join(lines).isascii()
    assert any(line.endswith(tiny().findings[0].evidence[1].text) for line in lines)
    assert not any(line != line.rstrip() for line in lines)


@pytest.mark.parametrize("sheet", [Sheet(), Sheet(80, fine=True), Sheet(40)])
def test_hostile_words_reach_no_terminal(sheet: Sheet) -> None:
    lines = list(report(sheet, hostile(), _why, _RULES))
    styles = {str(span.style) for line in lines for span in line.spans}

    assert all(line.plain.isprintable() for line in lines)
    assert any("[red]\\x1b[2J\\x07<script>\\u202e" in line.plain.replace(" ", "") for line in lines)
    assert "red" not in styles  # what [red] would have been, had it been markup


# --- the verdict


def test_a_host_error_leads() -> None:
    assert _verdict(tiny()).startswith(
        "KVM had one LPI live on two vCPUs at once (ITS401): LPI 8192, vCPUs 1 and 0, 5 times, first at 100.001700. "
        "This is likely; the capture begins with tables already in use; 1 of 21 rules could not run (not recorded)."
    )


def test_each_kind_has_its_sentence_the_worst_first_and_notes_have_none() -> None:
    mixed = copy(tiny())
    error = tiny().findings[0]
    life = replace(
        error, code="ITS301", claim="an interrupt was lost", kind=Kind.LIFE, count=1,
        confidence=Confidence.CERTAIN, id="",
    )  # fmt: skip
    mild = replace(
        error, code="ITS304", claim="an interrupt came late", kind=Kind.LIFE, severity=Severity.WARNING
    )
    other = replace(
        error, code="ITS105", claim="the guest queued it", kind=Kind.GUEST, severity=Severity.WARNING
    )
    note = replace(error, code="ITS306", kind=Kind.LIFE, severity=Severity.NOTE)
    mixed.findings = [error, life, life, mild, other, note]

    text = _verdict(mixed)

    lost = "An interrupt was lost (ITS301): LPI 8192, vCPUs 1 and 0, at 100.001700; and 2 more findings (ITS301 and ITS304)."
    assert (
        text.index("KVM had one LPI live")
        < text.index(lost)
        < text.index("The guest queued it (ITS105): LPI 8192")
    )
    assert "Of these 5 causes 2 are certain and 3 are likely" in text
    assert "ITS306" not in text


def test_a_guests_error_stands_before_a_warning_about_interrupts() -> None:
    mixed = copy(tiny())
    error = replace(tiny().findings[0], kind=Kind.GUEST, claim="the guest is wrong")
    late = replace(
        error, code="ITS304", kind=Kind.LIFE, severity=Severity.WARNING, claim="an interrupt came late"
    )
    mixed.findings = [error, late]

    assert _verdict(mixed).index("The guest is wrong") < _verdict(mixed).index("An interrupt came late")
    mixed.findings = [replace(error, severity=Severity.WARNING), late]
    assert _verdict(mixed).startswith("An interrupt came late")


def test_a_rule_without_words_is_named() -> None:
    bare = copy(tiny())
    bare.findings = [replace(tiny().findings[0], claim="", kind=Kind.GUEST)]

    assert _verdict(bare).startswith("The guest's commands are wrong, double-pending (ITS401): LPI 8192")


def test_a_clean_capture_is_called_so_and_how_surely() -> None:
    clean = copy(tiny())
    clean.findings, clean.skipped = [], []

    assert _verdict(clean) == (
        "Nothing wrong was found. 4 ITS commands, 1 MSI and 1 delivery agree with the model. "
        "The capture begins with tables already in use; all 21 rules ran and no records were lost."
    )


def test_where_much_could_not_be_looked_for_the_first_sentence_says_so() -> None:
    blind = copy(tiny())
    blind.findings, blind.skipped = [], tiny().skipped * 4

    assert _verdict(blind) == (
        "Nothing wrong was found in what was recorded; 4 of 21 rules could not run (not recorded). "
        "4 ITS commands, 1 MSI and 1 delivery were gone through. The capture begins with tables already in use."
    )


def test_causes_are_counted_and_what_follows_from_them_is_named() -> None:
    text = _verdict(story())

    assert text.startswith(
        "KVM kept translations cached that it had to drop (ITS202): LPI 8192 and 1 other, vCPU 0, 3 times, first at "
        "100.001700; from it follow stale-translation (ITS201), delivered-after-unmap (ITS305) and "
        "duplicate-delivery (ITS303). This is likely;"
    )
    assert "nterrupts went astray" not in text  # they did, because of that


def test_a_mild_cause_of_an_error_leads_the_verdict_and_other_causes_are_counted() -> None:
    mild = copy(tiny())
    mild.findings = [
        TWICE,  # of what is not shown
        replace(DEAD, severity=Severity.ERROR, caused_by=("ITS112",)),
        replace(DOUBLE, id="ITS402", code="ITS402", claim="KVM sent it astray"),
        replace(
            DOUBLE, id="ITS112", code="ITS112", claim="the guest sent no INV", kind=Kind.GUEST, severity=Severity.NOTE,
            leads_to=("ITS305",), confidence=Confidence.CERTAIN,
        ),
        replace(DOUBLE, id="ITS101", code="ITS101", kind=Kind.GUEST, severity=Severity.WARNING),
    ]  # fmt: skip
    text = _verdict(mild)

    assert "The guest sent no INV (ITS112)" in text
    assert "from it follows delivered-after-unmap (ITS305); and 1 more cause (ITS101)." in text
    assert "KVM sent it astray (ITS402)" in text
    assert "Interrupts went astray, duplicate-delivery (ITS303)" in text
    assert "Of these 4 causes 1 is certain and 3 are likely" in text


def test_lost_records_lessen_the_verdict() -> None:
    holed = copy(tiny())
    holed.findings, holed.skipped = [], []
    holed.gaps = pl.DataFrame([(0, 1, 2, None), (1, 1, 2, 7)], schema=GAPS, orient="row")

    assert "Records were lost in 2 places; the capture begins" in _verdict(holed)
    assert "7 or more lost in 2 places (CPU 0 and 1)" in " ".join(" ".join(_lines(Sheet(), holed)).split())


# --- the findings


def test_a_finding_has_all_its_parts() -> None:
    text = "\n".join(_lines(Sheet(200), tiny()))

    for part in (
        "ERROR  ITS401 double-pending", "KVM's doing, likely", "LPI 8192 was in a list register",
        "LPI 8192 (device 0x8, event 0), vCPUs 1 and 0, 5 times from 100.001700 to 100.002001 (300 us)",
        "why      Because of ITS401", "seen     100.001700499 [000] populate_lr  vcpu=0",
        "next     Keep EnableLPIs at 1",
        "WARNING  ITS901 lost-records",
    ):  # fmt: skip
        assert part in text


def test_the_vm_and_the_its_are_named_where_there_are_several() -> None:
    several = copy(tiny())
    several.observations = copy(tiny().observations)
    vms, itss = tiny().observations.vms, tiny().observations.itss
    several.observations.vms = pl.concat([vms, vms.with_columns(vm=pl.lit(1, dtype=pl.UInt16))])
    several.observations.itss = pl.concat([itss, itss.with_columns(its=pl.lit(1, dtype=pl.UInt16))])

    assert "vCPUs 1 and 0, VM 0, ITS 0, 5 times" in "\n".join(_lines(Sheet(200), several))
    assert "VM 0, ITS 0, 5 times" not in "\n".join(_lines(Sheet(200), tiny()))


def test_many_findings_of_one_rule_are_told_in_short_and_none_is_left_out() -> None:
    many = copy(tiny())
    many.findings = [
        replace(tiny().findings[0], message=f"This is number {n}.", evidence=()) for n in range(IN_FULL + 9)
    ]

    lines = _lines(Sheet(), many)

    assert sum(line.startswith("ERROR") for line in lines) == IN_FULL + 1
    assert "ERROR  ITS401 double-pending: 9 more, as above" in lines
    for n in range(IN_FULL + 9):
        assert sum(f"This is number {n}." in line for line in lines) == 1


@pytest.mark.parametrize("sheet", [Sheet(200), Sheet()])
def test_a_cause_is_told_in_full_and_what_follows_in_short_under_it(sheet: Sheet) -> None:
    lines = _lines(sheet, story())
    text = "\n".join(lines)
    head = next(at for at, line in enumerate(lines) if line.startswith("ERROR  ITS202 missing-invalidation"))
    block = " ".join(" ".join(lines[head : lines.index("", head)]).split())

    for part in (
        "worst the cache of 0x8/0 stayed for 1.44 s", "guest an interrupt that it had taken down",
        "suspect vgic_its_cmd_handle_discard, vgic_its_invalidate_cache",
        "known the cache is filled while it is dropped; fixed: v6.10, v6.6.33 (CVE-2024-1)",
        "doubt Whether the function's body ran was not recorded.",
        "record r:its_inval_cache_ret vgic_its_invalidate_cache",
        f"leads to ERROR ITS201 stale-translation on LPI 8192, at 100.001700 {STALE.message}",
        "WARNING ITS305 delivered-after-unmap on LPI 8192, vCPU 0, at 100.001700 LPI 8192 was delivered",
        f"ERROR ITS303 duplicate-delivery on LPI 8192, at 100.001700, likely, because of ITS201 {TWICE.message}",
    ):  # fmt: skip
        assert part in block
    assert text.count(STALE.message) == 1
    assert "Findings  3 errors and 2 warnings, of 2 causes" in text


def test_what_follows_from_a_cause_that_is_left_out_says_so() -> None:
    alone = copy(tiny())
    alone.findings = [STALE, TWICE]

    text = "\n".join(_lines(Sheet(200), alone))

    assert "  cause    ITS202, left out here" in text
    assert text.index("  leads to") < text.index("ITS303 duplicate-delivery on LPI 8192")


def test_what_follows_from_two_causes_is_told_under_one_and_named_by_the_other() -> None:
    two = copy(tiny())
    other = replace(CAUSE, id="ITS202-2", leads_to=("ITS201",))
    two.findings = [CAUSE, other, replace(STALE, caused_by=("ITS202", "ITS202-2"))]

    lines = _lines(Sheet(200), two)

    assert sum(STALE.message in line for line in lines) == 1
    assert "    ITS201, told with another cause" in lines
    assert "ERROR  ITS202-2 missing-invalidation" in "\n".join(lines)


def test_of_very_much_that_follows_the_rest_is_counted() -> None:
    many = copy(tiny())
    names = tuple(f"ITS201-{n}" for n in range(EFFECTS_SHOWN + 5))
    many.findings = [
        replace(CAUSE, leads_to=names),
        *(replace(STALE, id=name, message=f"This is {name}.", leads_to=()) for name in names),
    ]

    lines = _lines(Sheet(), many)

    assert sum(line.startswith("      This is ITS201-") for line in lines) == EFFECTS_SHOWN
    assert "    and 5 more findings, ITS201 (5); --json has all" in lines


def test_causes_beyond_the_first_few_keep_what_follows_from_them() -> None:
    many = copy(tiny())
    causes = [replace(CAUSE, id=f"ITS202-{n}", leads_to=(f"ITS201-{n}",)) for n in range(IN_FULL + 4)]
    effects = [
        replace(STALE, id=f"ITS201-{n}", caused_by=(f"ITS202-{n}",), message=f"It follows from {n}.")
        for n in range(IN_FULL + 4)
    ]
    many.findings = [*causes, *effects]

    text = "\n".join(_lines(Sheet(), many))

    assert "ERROR  ITS202 missing-invalidation: 4 more, as above" in text
    assert text.count("(leads to ITS201-") == 4
    for n in range(IN_FULL + 4):
        assert text.count(f"It follows from {n}.") == 1


def test_several_known_bugs_are_told_each() -> None:
    two = copy(tiny())
    two.findings = [
        replace(CAUSE, known_bugs=(KnownBug("one", "v1", "a"), KnownBug("other", "nowhere yet", "b")))
    ]
    lines = _lines(Sheet(), two)
    at = lines.index("  known    one; fixed: v1 (a)")

    assert lines[at + 1] == "           other; not fixed yet (b)"


# --- against a baseline


def _against(analysis: Analysis, *then: str, skipped: tuple[str, ...] = ()) -> Compared:
    """A baseline of these findings of the story, and of what it brings."""
    old = copy(story())
    old.findings = [one for one in story().findings if one.id in then]
    past = read_baseline(json.dumps(analysis_document(old)), "old.json")
    return compare(analysis.findings, past, "old.json", skipped=skipped)


def test_what_a_baseline_has_is_counted_and_not_told() -> None:
    against = _against(story(), *(one.id for one in story().findings))
    text = "\n".join(_lines(Sheet(), story(), against))

    assert _verdict(story(), against).startswith(
        "Nothing new is wrong. 5 findings as in the baseline (ITS201, ITS202, ITS303, ITS305 and others). The capture begins"
    )
    assert "ERROR" not in text
    assert "Findings" not in text


def test_what_is_new_stands_with_its_cause_named() -> None:
    against = _against(story(), "ITS202")
    text = "\n".join(_lines(Sheet(), story(), against))

    assert "1 finding as in the baseline (ITS202)." in _verdict(story(), against)
    assert "New findings  2 errors and 2 warnings, of 3 causes" in text
    assert "  cause    ITS202, as in the baseline" in text
    assert CAUSE.message not in text


def test_what_is_new_of_a_finding_is_named() -> None:
    more = copy(tiny())
    more.findings = [replace(CAUSE, leads_to=(), subjects=(*CAUSE.subjects, Subject(9, 2, 8200), Subject()))]

    assert "  new      LPI 8200 (device 0x9, event 2) and the ITS; the baseline has the rest" in _lines(
        Sheet(), more, _against(more, "ITS202")
    )
    worse = _against(more)
    worse = replace(worse, milder={"ITS202": Severity.NOTE})
    assert "  new      the baseline has it as a note" in _lines(Sheet(), more, worse)


def test_what_is_gone_is_told() -> None:
    clean = copy(tiny())
    clean.findings = []

    assert _verdict(clean, _against(clean, "ITS202", "ITS201", "ITS303", skipped=("ITS303",))).startswith(
        "Nothing wrong was found. 4 ITS commands, 1 MSI and 1 delivery agree with the model. 0 findings as in the "
        "baseline; 2 of it are gone (ITS201 and ITS202); 1 of it could not be looked for (ITS303)."
    )


# ---


def test_why_and_next_are_said_once_a_rule() -> None:
    twice = copy(tiny())
    twice.findings = [tiny().findings[0], replace(tiny().findings[0], id="ITS401-2")]

    text = "\n".join(_lines(Sheet(200), twice))

    assert text.count("Because of ITS401") == text.count("Keep EnableLPIs at 1") == 1
    assert "why it matters and what to do next: as for ITS401 above" in text


def test_long_evidence_is_wrapped_then_cut_and_much_of_it_is_counted() -> None:
    long = copy(tiny())
    record = replace(tiny().findings[0].evidence[0], text="word " * 200)
    long.findings = [replace(tiny().findings[0], evidence=(record,) * (EVIDENCE_SHOWN + 4))]

    lines = _lines(Sheet(80, fine=True), long)

    assert any("and 4 more records; --json has all" in line for line in lines)
    assert sum("word word" in line for line in lines) == EVIDENCE_SHOWN * 3
    assert sum(line.endswith("\u2026") for line in lines) == EVIDENCE_SHOWN


# --- tables and coverage


def test_rows_beyond_the_first_dozen_are_counted() -> None:
    text = "\n".join(_lines(Sheet(), analysis_of(SAMPLES / "7.3-migrate.dat")))

    assert "12 of 15 shown, `itstrace tables` has all" in text


def test_what_was_only_seen_in_use_says_so() -> None:
    lines = _lines(Sheet(), tiny())

    assert "     0x9          ?           ?  use" in lines
    assert "     0x8         32  0x41060000  command" in lines


def test_what_could_not_be_seen_says_what_to_record() -> None:
    text = " ".join(" ".join(_lines(Sheet(), tiny())).split())

    assert "REGISTER_WRITES not recorded: writes to the ITS's registers" in text
    assert "1 rule could not run. What is missing: - REGISTER_WRITES: record its_wr_cwriter" in text


def test_rules_of_other_packages_that_failed_are_named() -> None:
    partial = copy(tiny())
    partial.skipped = [*tiny().skipped, SkippedRule("ABC101", "own-rule", (), why="KeyError: 'x'")]
    partial.plugins = (
        Plugin("acme", "acme-rules 1", problem="ImportError: \x1bno"),
        Plugin("fine", "fine 1"),
    )
    lines = _lines(Sheet(), partial)
    at = lines.index("  Rules of other packages that failed, and are left out:")

    assert lines[at + 1 :] == ["  - ABC101: KeyError: 'x'", "  - acme-rules 1 (acme): ImportError: \\x1bno"]
    assert "  1 rule could not run. What is missing:" in lines
