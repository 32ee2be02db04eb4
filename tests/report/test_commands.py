"""ITS commands with their verdicts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import SAMPLES, analysis_of
from helpers import tiny_capture
from helpers.tiny_analysis import tiny

from itstrace.report.commands import EVENT_OPCODES, command_documents, command_lines, command_rows
from itstrace.report.layout import Sheet

MISTAKES = SAMPLES / "7.3-guest-mistakes.dat"


def test_every_command_has_a_line_with_its_verdict() -> None:
    analysis = analysis_of(MISTAKES)
    lines = [line.plain for line in command_lines(Sheet(), analysis, {})]
    faults = analysis.history.verdicts.filter(analysis.history.verdicts["verdict"] == "fault")

    assert len(lines) == 1 + analysis.observations.commands.height
    assert sum("  fault    " in line for line in lines) == faults.height > 0
    for text, fault in faults.select("text", "fault").iter_rows():
        assert any(f"{text}  {fault}" in line for line in lines)


def test_a_small_list_whole() -> None:
    lines = [line.plain for line in command_lines(Sheet(), tiny(), {4711: tiny_capture.HOSTILE})]

    assert lines[0].split() == ["time", "cpu", "task", "slot", "LPI", "verdict", "command"]
    assert lines[3].split()[3:6] == ["0x40", "8192", "ok"]
    assert " ".join(lines[4].split()).startswith(
        "100.000600 000 [red]\\x1b[2J\\x07<script>\\u202e[/red]-4711 0x60 assumed"
    )
    assert all(line.isprintable() for line in lines)


def test_a_narrow_terminal_shows_the_whole_command_and_its_fault() -> None:
    lines = [line.plain for line in command_lines(Sheet(80), analysis_of(MISTAKES), {})]
    text = " ".join(" ".join(lines).split())

    assert max(map(len, lines)) <= 80
    assert "INT_UNMAPPED_INTERRUPT" in text
    assert "\u2026" not in text


def test_fewer_lines_on_demand_say_how_many_there_are() -> None:
    analysis = analysis_of(MISTAKES)
    lines = [line.plain for line in command_lines(Sheet(80), analysis, {}, 3)]

    assert lines[-1] == f"3 of {analysis.observations.commands.height} commands shown; --limit 0 prints all"
    assert len(command_documents(analysis, {}, 3)["commands"]) == 3


def test_the_document_has_the_words_as_hex() -> None:
    document = json.loads(json.dumps(command_documents(tiny(), {4711: "qemu"})))

    assert document["total"] == 4
    assert document["commands"][2] == {
        "time_ns": 100_000_500_000, "cpu": 0, "pid": 4711, "comm": "qemu", "vm": 0, "its": 0, "slot": 64,
        "dw": ["0x80000000a", "0x200000000000", "0x0", "0x0"], "opcode": "MAPTI",
        "text": "MAPTI DeviceID 0x8 EventID 0 pINTID 8192 ICID 0", "intid": 8192, "verdict": "ok", "fault": None,
        "detail": None, "lost_before": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    "name", ["7.3-guest-mistakes.dat", "7.3-migrate.dat", "6.12-lost-records.dat", "6.12-double-delivery.dat"]
)
def test_a_command_knows_the_lpi_that_its_event_meant(name: str) -> None:
    """Against the history of mappings, one by one: what began with the command, or held, or ended with it."""
    analysis = analysis_of(SAMPLES / name)
    events: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for one in analysis.history.mappings.iter_rows(named=True):
        events.setdefault((one["vm"], one["its"], one["device_id"], one["event_id"]), []).append(one)
    rows = command_rows(analysis)

    assert rows["seq"].to_list() == analysis.observations.commands["seq"].to_list()
    for row in rows.iter_rows(named=True):
        expected = None
        if row["dw0"] is not None and row["dw0"] & 0xFF in EVENT_OPCODES:
            event = (row["vm"], row["its"], row["dw0"] >> 32, row["dw1"] & 0xFFFFFFFF)
            for one in events.get(event, []):
                held = (one["from_seq"] or 0) < row["seq"] and (one["to_seq"] or row["seq"]) >= row["seq"]
                expected = one["intid"] if held else expected
            began = [one["intid"] for one in events.get(event, []) if one["from_seq"] == row["seq"]]
            expected = began[0] if began else expected
        assert row["intid"] == expected, row["text"]
    ended = rows.filter((rows["opcode"] == "DISCARD") & (rows["verdict"] == "ok"))
    assert ended["intid"].null_count() == 0
    assert rows["intid"].drop_nulls().len() > 20
