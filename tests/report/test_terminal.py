"""The report for a person: right, readable at any width, plain in a pipe, safe whatever the capture holds."""

from __future__ import annotations

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
from itstrace.report.finding import EVIDENCE_SHOWN, IN_FULL
from itstrace.report.layout import Sheet
from itstrace.report.terminal import report
from itstrace.schemas import GAPS

if TYPE_CHECKING:
    from itstrace import Analysis

GOLDEN = Path(__file__).parent / "golden"
_RULES = 21


def _why(code: str) -> str:
    return f"Because of {code}: the guest waits for an interrupt that never comes, and the disk stalls."


def _lines(sheet: Sheet, analysis: Analysis) -> list[str]:
    return [line.plain for line in report(sheet, analysis, _why, _RULES)]


def _verdict(analysis: Analysis) -> str:
    lines = _lines(Sheet(), analysis)
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
        "KVM departs from its guest's ITS commands: double-pending (ITS401) on LPI 8192, vCPUs 1 and 0, "
        "first at 100.001700, 5 times. This is likely; the capture begins with tables already in use; 1 of 21 rules"
    )


def test_each_kind_of_error_has_its_sentence_and_milder_ones_have_none() -> None:
    mixed = copy(tiny())
    error = tiny().findings[0]
    life = replace(
        error, code="ITS301", name="lost-lpi", kind=Kind.LIFE, count=1, confidence=Confidence.CERTAIN, id=""
    )
    mild = replace(error, code="ITS105", name="unknown-command", kind=Kind.GUEST, severity=Severity.WARNING)
    mixed.findings = [error, life, life, mild]

    text = _verdict(mixed)

    assert text.index("KVM departs") < text.index("Interrupts went astray: lost-lpi (ITS301)")
    assert "and 1 more finding (ITS301)" in text
    assert "Of these 2 are certain and 1 are likely" in text
    assert "ITS105" not in text


def test_a_warning_is_said_where_there_is_no_error() -> None:
    mild = copy(tiny())
    mild.findings = [replace(tiny().findings[0], kind=Kind.GUEST, severity=Severity.WARNING)]

    assert _verdict(mild).startswith("The guest's ITS commands are wrong: double-pending")


def test_a_clean_capture_is_called_so_and_how_surely() -> None:
    clean = copy(tiny())
    clean.findings, clean.skipped = [], []

    assert _verdict(clean) == (
        "Nothing wrong was found. 4 ITS commands, 1 MSI and 1 delivery agree with the model. "
        "The capture begins with tables already in use; all 21 rules ran and no records were lost."
    )


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
