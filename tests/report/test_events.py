"""Records of any event: what its print format says in hex or by name, for people and for programs."""

from __future__ import annotations

import polars as pl
import pytest
from helpers import tiny_capture

from itstrace.readers.base import EventField, EventFormat
from itstrace.report.events import Printer, piped, records
from itstrace.report.layout import Sheet
from itstrace.report.symbols import hex_fields

_FIELDS = (
    EventField("__probe_ip", "unsigned long", 8, 8, False, pl.UInt64()),
    EventField("irq", "u64", 16, 8, False, pl.UInt64()),
    EventField("kind", "u32", 24, 4, False, pl.UInt32()),
    EventField("count", "s32", 28, 4, True, pl.Int32()),
    EventField("text", "__data_loc char[]", 32, 4, False, pl.String()),
)
_FORMAT = (
    '"(%lx) irq=0x%Lx kind=%s 0x%x count=%d text=%s", REC->__probe_ip, REC->irq, '
    '__print_symbolic(REC->kind, { 0, "edge" }, { (1UL << 1), "level" }), REC->kind, REC->count, __get_str(text)'
)
EVENT = EventFormat(7, "vgic", "demo", _FIELDS, _FORMAT)
ROW = {
    "seq": 1, "time_ns": 1_000_000_001, "cpu": 3, "pid": 42,
    "__probe_ip": 0xFFFF800080000000, "irq": 0xFFFF00000CE1E680, "kind": 2, "count": -1, "text": "hello\n",
}  # fmt: skip


def _rows(*rows: dict[str, object]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema_overrides={"__probe_ip": pl.UInt64, "irq": pl.UInt64, "text": pl.String})


@pytest.mark.parametrize(
    ("print_fmt", "fields"),
    [
        ('"a=%d b=0x%llx c=%p d=%s", REC->irq, REC->kind, REC->count, REC->text', {"kind", "count"}),
        ('"%d%% %08lX", REC->irq, REC->kind', {"kind"}),
        ('"%s %x", __print_symbolic(REC->kind, { 1, "x, %x" }), REC->irq', {"irq"}),
        ('"%x", REC->irq >> 3', set()),
        ('"%*x %d", 3, REC->irq, REC->kind', set()),
        ('"no end', set()),
        ("", set()),
    ],
)
def test_hex_is_what_the_format_says_in_hex(print_fmt: str, fields: set[str]) -> None:
    assert hex_fields(EventFormat(1, "a", "b", _FIELDS, print_fmt)) == fields


def test_a_person_sees_names_and_hex_and_no_probe_address() -> None:
    printer = Printer.of(EVENT, {42: "qemu"})

    assert printer.cells(_rows(ROW))[0] == (
        "1.000000001",
        "003",
        "qemu-42",
        "0xffff00000ce1e680",
        "level",
        "-1",
        "hello",
    )
    assert [column.title for column in printer.columns()] == [
        "time",
        "cpu",
        "task",
        "irq",
        "kind",
        "count",
        "text",
    ]


def test_a_program_sees_numbers_and_their_names() -> None:
    assert Printer.of(EVENT, {}).document(ROW) == {
        "time_ns": 1_000_000_001, "cpu": 3, "pid": 42, "comm": None, "__probe_ip": "0xffff800080000000",
        "irq": "0xffff00000ce1e680", "kind": 2, "kind_name": "level", "count": -1, "text": "hello\n",
    }  # fmt: skip


def test_an_unknown_value_and_an_unnamed_one_are_shown_as_such() -> None:
    printer = Printer.of(EVENT, {})

    rows = _rows({**ROW, "kind": 77, "irq": None, "text": None})

    assert printer.cells(rows)[0][3:] == ("?", "0x4d", "-1", "?")


def test_arrays_and_bytes_are_readable() -> None:
    fields = (
        EventField("args", "unsigned long[2]", 8, 16, False, pl.List(pl.UInt64())),
        EventField("raw", "u8[2]", 24, 2, False, pl.Binary()),
    )
    printer = Printer.of(EventFormat(1, "a", "b", fields, '"%s", __print_hex(REC->raw, 2)'), {})
    row = {"seq": 0, "time_ns": 0, "cpu": 0, "pid": 1, "args": [1, None], "raw": b"\x1b\x00"}

    assert printer.cells(pl.DataFrame([row]))[0][3:] == ("{1,?}", "1b00")
    assert printer.document(row)["raw"] == "1b00"


def test_a_narrow_terminal_gets_records_instead_of_columns() -> None:
    printer = Printer.of(EVENT, {42: "qemu"})

    wide = [line.plain for line in records(Sheet(120), printer, _rows(ROW))]
    narrow = [line.plain for line in records(Sheet(50), printer, _rows(ROW))]

    assert wide[1].split() == ["1.000000001", "003", "qemu-42", "0xffff00000ce1e680", "level", "-1", "hello"]
    assert narrow == [
        "1.000000001 [003] qemu-42",
        "    irq=0xffff00000ce1e680 kind=level count=-1",
        "    text=hello",
    ]


def test_a_pipe_gets_one_line_a_record_and_one_head() -> None:
    printer = Printer.of(EVENT, {42: tiny_capture.HOSTILE})
    blocks = [_rows(ROW), _rows({**ROW, "time_ns": 1000_000_000_001, "text": "two\nlines"})]

    lines = list(piped(printer, blocks))

    assert len(lines) == 3
    assert lines[0].split() == ["time", "cpu", "task", "irq", "kind", "count", "text"]
    assert all(line.endswith("\n") and line[:-1].isprintable() for line in lines)
    assert lines[2].startswith("1000.000000001")
    assert lines[2].endswith("two\\nlines\n")


def test_no_records_still_have_a_head() -> None:
    assert [line.split()[0] for line in piped(Printer.of(EVENT, {}), [])] == ["time"]
