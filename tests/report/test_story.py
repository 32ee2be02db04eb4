"""The life of one LPI: everything about it, nothing else, in order."""

from __future__ import annotations

import json
from collections import Counter
from copy import copy
from dataclasses import replace

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of
from helpers.tiny_analysis import hostile, tiny
from rich.cells import cell_len

from itstrace.findings import Subject
from itstrace.report.layout import Sheet
from itstrace.report.story import known_lpis, story, story_document, told

DOUBLE = SAMPLES / "6.12-double-delivery.dat"


def test_a_small_life_whole() -> None:
    alone = tiny()
    alone.findings = []

    assert [(step.kind, step.text) for step in story(alone, 0, 8192).steps] == [
        ("command", "MAPTI DeviceID 0x8 EventID 0 pINTID 8192 ICID 0"),
        ("table", "device 0x8, event 0 means this LPI, collection 0; to be queued to vCPU 0"),
        ("msi", "MSI from device 0x8, event 0 through the tables"),
        ("queue", "queued for vCPU 0 (pending)"),
        ("fill", "into list register 0 of vCPU 0"),
        ("fold", "vCPU 0 reads it back: empty: the guest took it and is done"),
    ]


def test_a_finding_stands_where_it_begins() -> None:
    analysis = tiny()
    fill = analysis.observations.fills["seq"][0]
    finding = analysis.findings[0]
    early, late = (replace(finding.evidence[0], seq=seq) for seq in (0, fill))
    records = (replace(early, time_ns=0), replace(late, time_ns=finding.time_ns or 0), late)
    analysis.findings = [replace(finding, evidence=records, seqs=(0, fill))]

    kinds = [step.kind for step in story(analysis, 0, 8192).steps]

    assert kinds[kinds.index("finding") - 1] == "fill"


def test_a_finding_about_several_lpis_is_in_the_life_of_each_where_it_was_first_hit() -> None:
    analysis = tiny()
    queue = analysis.observations.queueings.row(0, named=True)
    finding = replace(
        analysis.findings[0],
        id="ITS401-2",
        intid=8191,
        subjects=(Subject(intid=8191, time_ns=0), Subject(8, 0, 8192, time_ns=queue["time_ns"] + 1)),
        caused_by=("ITS402",),
    )
    analysis.findings = [finding]
    steps = story(analysis, 0, 8192).steps
    at = [step.kind for step in steps].index("finding")

    assert steps[at - 1].kind == "queue"
    assert steps[at].time_ns == queue["time_ns"] + 1
    assert steps[at].text == f"ITS401-2 double-pending: {finding.message} (because of ITS402)"
    analysis.findings = [replace(finding, subjects=finding.subjects[:1])]
    assert "finding" not in [step.kind for step in story(analysis, 0, 8192).steps]


def test_a_mapping_from_before_the_capture_is_said() -> None:
    analysis = tiny()
    analysis.history = copy(analysis.history)
    nothing = pl.lit(None, dtype=pl.UInt64)
    analysis.history.mappings = analysis.history.mappings.with_columns(from_seq=nothing, set_by=nothing)
    lines = [line.plain for line in told(Sheet(), analysis, story(analysis, 0, 8192))]

    assert "  device 0x8, event 0 meant it before the capture began" in lines


def test_findings_about_others_stay_out() -> None:
    analysis = tiny()
    other = analysis.findings[0]
    analysis.findings = [replace(other, intid=8193), replace(other, vm=1), replace(other, intid=None)]

    assert "finding" not in {step.kind for step in story(analysis, 0, 8192).steps}


@pytest.mark.parametrize("name", ["6.12-double-delivery.dat", "6.1-stale-target.dat", "7.3-migrate.dat"])
def test_every_observation_of_an_lpi_is_told_once_and_in_order(name: str) -> None:
    analysis = analysis_of(SAMPLES / name)
    observations = analysis.observations
    for vm, intid in known_lpis(analysis).iter_rows():
        mine = (pl.col("vm") == vm) & (pl.col("intid") == intid)
        tale = story(analysis, vm, intid)
        counted = Counter(step.kind for step in tale.steps)

        assert [step.seq for step in tale.steps] == sorted(step.seq for step in tale.steps)
        assert counted["queue"] == observations.queueings.filter(mine).height
        assert counted["fill"] == observations.fills.filter(mine).height
        assert counted["fold"] == observations.fills.filter(mine)["end_seq"].drop_nulls().len()
        assert counted["retarget"] == observations.retargets.filter(mine).height
        assert counted["msi"] >= observations.injections.filter(mine).height
        assert counted["finding"] == sum(
            finding.vm == vm and intid in {one.intid for one in finding.subjects}
            for finding in analysis.findings
        )


def test_the_commands_that_touched_it_are_there_and_no_others() -> None:
    analysis = analysis_of(DOUBLE)
    texts = [step.text for step in story(analysis, 0, 8193).steps if step.kind == "command"]
    moves = analysis.history.verdicts.filter(pl.col("text").str.starts_with("MOVI DeviceID 0x123 EventID 1 "))

    assert texts[0] == "MAPTI DeviceID 0x123 EventID 1 pINTID 8193 ICID 1"
    assert sum(text.startswith("MOVI") for text in texts) == moves.height > 0
    assert {text.split()[0] for text in texts} <= {"MAPTI", "MOVI", "INV", "INT", "DISCARD", "MAPD", "CLEAR"}
    assert all("EventID 1 " in f"{text} " for text in texts if text.split()[0] != "MAPD")


def test_what_its_vcpus_went_through_is_told_from_its_mapping_on() -> None:
    steps = story(analysis_of(DOUBLE), 0, 8193).steps

    assert steps[0].kind == "command"
    assert any(step.text.startswith("EnableLPIs of vCPU 1 goes to 0") for step in steps)


@pytest.mark.parametrize("sheet", [Sheet(), Sheet(80, fine=True), Sheet(160, fine=True)])
def test_the_telling_fits_and_is_safe(sheet: Sheet) -> None:
    analysis = hostile()
    lines = [line.plain for line in told(sheet, analysis, story(analysis, 0, 8192))]

    assert all(line.isprintable() for line in lines)
    assert sheet.width is None or max(map(cell_len, lines)) <= sheet.width
    assert any("\\x1b[2J" in line for line in lines)


def test_times_are_exact_and_effects_of_one_record_have_none() -> None:
    analysis = tiny()
    analysis.findings = []
    lines = [line.plain for line in told(Sheet(), analysis, story(analysis, 0, 8192))]
    steps = lines[lines.index("") + 1 :]

    assert steps[0].startswith("100.000500000            [000] command   MAPTI")
    assert steps[1].strip().startswith("table     device 0x8")
    assert steps[2].startswith("100.000900000   +400 us  [001] msi")


def test_more_steps_than_shown_are_counted() -> None:
    analysis = analysis_of(DOUBLE)
    tale = story(analysis, 0, 8193)
    lines = [line.plain for line in told(Sheet(), analysis, tale, show=7)]

    assert lines[-1] == f"7 of {len(tale.steps)} steps shown; --limit 0 shows all"


def test_the_document_has_steps_and_lives() -> None:
    analysis = analysis_of(DOUBLE)
    document = json.loads(json.dumps(story_document(analysis, story(analysis, 0, 8193))))

    assert document["intid"] == 8193
    assert len(document["lives"]) == analysis.lives.lives.filter(pl.col("intid") == 8193).height
    assert {"seq", "time_ns", "cpu", "kind", "text", "severity"} == set(document["steps"][0])
