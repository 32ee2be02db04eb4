"""The data of a page: what the JSON says, number by number; and caps that say what they leave out."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from conftest import SAMPLES, analysis_of

from itstrace.report.commands import command_documents
from itstrace.report.html.frames import Caps
from itstrace.report.html.model import Report, model
from itstrace.report.json import analysis_document
from itstrace.rules import RULES

#: Captures whose data are compared with the JSON, number by number.
NAMES = (
    "6.12-double-delivery.dat",
    "7.3-guest-mistakes.dat",
    "6.12-lost-records.dat",
    "7.3-migrate.dat",
    "qemu-linux.log.zst",
)
_TIMES = ("time_ns", "start_ns", "end_ns", "from_ns", "to_ns")


def _model(name: str, caps: Caps | None = None) -> Report:
    pages = {code: rule.page for code, rule in RULES.items()}
    comms = {10538: "qemu"}
    return model(
        analysis_of(SAMPLES / name), pages=pages.__getitem__, rules=len(RULES), comms=comms, caps=caps
    )


def _timed(value: Any, origin_ns: int) -> Any:
    """A document of the page with times of the clock again."""
    if isinstance(value, dict):
        return {
            key: each + origin_ns if key in _TIMES and each is not None else _timed(each, origin_ns)
            for key, each in value.items()
        }
    return [_timed(each, origin_ns) for each in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("name", NAMES)
def test_the_document_says_what_the_json_says(name: str) -> None:
    report, json = _model(name), analysis_document(analysis_of(SAMPLES / name))

    assert report.document["summary"] == json["summary"]
    assert report.document["coverage"] == json["coverage"]
    assert _timed(report.document["capture"], report.origin_ns) == json["capture"]
    for shown, finding in zip(report.document["findings"], json["findings"], strict=True):
        timed = _timed(shown, report.origin_ns)
        evidence = [
            {key: item[key] for key in ("time_ns", "cpu", "event", "text")} for item in timed["evidence"]
        ]
        assert shown["records"] == len(finding["evidence"])
        assert (
            evidence
            == [
                {key: item[key] for key in ("time_ns", "cpu", "event", "text")}
                for item in finding["evidence"]
            ][:40]
        )
        same = [key for key in finding if key not in {"evidence", "subjects"} and key in shown]
        assert {key: timed[key] for key in same} == {key: finding[key] for key in same}
        assert {"code", "count", "message", "time_ns", "vcpus", "severity", "confidence"} <= set(same)


@pytest.mark.parametrize("name", NAMES)
def test_lpis_are_those_of_the_json(name: str) -> None:
    rows = {(row["vm"], row["intid"]): row for row in _model(name).frames["lpis"].to_dicts()}
    for vm in analysis_document(analysis_of(SAMPLES / name))["vms"]:
        for lpi in vm["lpis"]:
            row = rows[vm["vm"], lpi["intid"]]
            latency = lpi.pop("latency_ns") or dict.fromkeys(("p50", "p99", "max"))
            assert {key: row[key] for key in ("p50", "p99", "max")} == latency
            assert {key: row[key] for key in lpi} == lpi


@pytest.mark.parametrize("name", NAMES)
def test_commands_are_those_of_the_json(name: str) -> None:
    report = _model(name)
    commands = command_documents(analysis_of(SAMPLES / name), {})["commands"]
    rows = report.frames["commands"].to_dicts()
    for row, command in zip(rows, commands, strict=True):
        assert [None if row[f"dw{n}"] is None else f"0x{row[f'dw{n}']:x}" for n in range(4)] == command["dw"]
        same = (
            "time_ns",
            "cpu",
            "vm",
            "its",
            "slot",
            "opcode",
            "text",
            "verdict",
            "fault",
            "detail",
            "lost_before",
        )
        assert {key: row[key] for key in same} == {key: command[key] for key in same}


def test_everything_is_kept_of_a_capture_that_fits() -> None:
    report = _model("7.3-guest-mistakes.dat")
    assert report.document["single"]["whole"]
    assert all(kept == total for kept, total in report.document["kept"].values())


def test_caps_are_told_and_what_findings_rest_on_is_kept() -> None:
    caps = Caps(events=1500, commands=40, intervals=20, lpis=5, findings=3, evidence=4, subjects=2)
    analysis = analysis_of(SAMPLES / "7.3-guest-mistakes.dat")
    report = _model("7.3-guest-mistakes.dat", caps)
    kept = report.document["kept"]

    assert not report.document["single"]["whole"]
    assert kept["findings"] == [3, len(analysis.findings)]
    assert kept["commands"] == [40, analysis.observations.commands.height]
    assert kept["lpis"][0] == 5
    assert kept["mappings"][0] <= 20 < kept["mappings"][1]
    assert kept["msis"][0] < kept["msis"][1]
    worst = analysis.findings[0]
    assert worst.intid in report.frames["lpis"]["intid"].to_list()
    shown = set(report.frames["fills"]["time_ns"].to_list()) | set(report.frames["fills"]["end_ns"].to_list())
    assert worst.time_ns in shown


@pytest.mark.parametrize("name", NAMES)
def test_two_sentences_tell_the_worst(name: str) -> None:
    worst = _model(name).document["worst"]
    if worst is None:
        return
    assert 1 <= len(worst["told"]) <= 2
    assert all(text.endswith(".") for text in worst["told"])
    ids = [finding["id"] for finding in _model(name).document["findings"]]
    assert worst["id"] in ids


def test_each_configuration_names_the_command_under_which_it_was_read() -> None:
    report = _model("6.12-double-delivery.dat")
    opcodes = dict(report.frames["commands"].select("seq", "opcode").iter_rows())
    under = report.frames["configurations"].filter(pl.col("under").is_not_null())["under"]
    assert under.len() > 0
    assert {opcodes[seq] for seq in under} <= {"MAPTI", "INV", "INVALL"}
