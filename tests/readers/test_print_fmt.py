"""Records as the kernel would print them, from the event's own print fmt."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import polars as pl
import pytest
from helpers.trace_cmd import needs_trace_cmd
from hypothesis import given
from hypothesis import strategies as st

from itstrace.readers.base import EventField, EventFormat
from itstrace.readers.print_fmt import ValueTable, render, value_tables
from itstrace.readers.tracedat import TraceDat

_CORPUS = os.environ.get("ITSTRACE_CORPUS")

#: Where the reference prints something else than the kernel does.
KNOWN_DIFFERENCES = {
    "print": "names the function at `ip`, from kallsyms",
    "trap_reg": "%s of a pointer: the reference omits 0x",
    "kvm_arm_set_dreg32": "%s of a pointer: the reference omits 0x",
    "kvm_sys_access": "the reference does not know `a ?: b` and falls back to fields",
    "kvm_wfx_arm64": "the reference does not know %c of a ternary",
    "kvm_userspace_exit": "the reference compares the negative errno as unsigned",
}


def _event(print_fmt: str, *names: str) -> EventFormat:
    fields = tuple(EventField(name, "int", 0, 4, True, pl.Int32()) for name in names)
    return EventFormat(1, "demo", "event", fields, print_fmt)


@pytest.mark.parametrize(
    ("print_fmt", "row", "text"),
    [
        ('"%d %u %x", REC->a, REC->a, REC->a', {"a": -1}, "-1 4294967295 ffffffff"),
        ('"%lld %llx %lu", REC->a, REC->a, REC->a', {"a": -2}, "-2 fffffffffffffffe 18446744073709551614"),
        ('"%Lx %Ld", REC->a, REC->a', {"a": -2}, "fffffffffffffffe -2"),
        ('"%hhd %hx", REC->a, REC->a', {"a": 0x1FF}, "-1 1ff"),
        ('"[%5d|%-5d|%05d]", REC->a, REC->a, REC->a', {"a": 42}, "[   42|42   |00042]"),
        ('"[%+d|%#x|%.3u]", REC->a, REC->a, REC->a', {"a": 42}, "[+42|0x2a|042]"),
        ('"%*d %.*s", 4, REC->a, 2, REC->b', {"a": 7, "b": "abc"}, "7 ab"),
        ('"%s %s", REC->a ? "on" : "off", REC->b ?: "none"', {"a": 0, "b": 0}, "off none"),
        ('"%s", REC->a == 1 ? "x" : REC->a == 2 ? "y" : "z"', {"a": 2}, "y"),
        ('"%c%c 100%%", REC->a ? \'e\' : \'i\', 65', {"a": 1}, "eA 100%"),
        ('"%d", (((REC->a) >> 19) & 0x3) + 2 * 3 - 10 / 3 % 2', {"a": 3 << 19}, "8"),
        ('"%d %d", (s8)(REC->a), (int)(unsigned char)REC->a', {"a": 255}, "-1 255"),
        ('"%llu", (((u64)(REC)->a << 32) | (REC)->b)', {"a": 1, "b": 5}, "4294967301"),
        ('"%s", __print_symbolic(REC->a, { 0, "0" }, { (1UL << 4), "six" "teen" }, { LATER, "?" })',
         {"a": 16}, "sixteen"),
        ('"%s", __print_symbolic(REC->a, { 0, "zero" })', {"a": 9}, "0x9"),
        ('"%s", __print_flags(REC->a, "|", { 0x1, "A" }, { 2, "B" }, { 4, "C" })', {"a": 0x85}, "A|C|0x80"),
        ('"%s %s", __get_str(a), __get_str(b)', {"a": "x y", "b": "z"}, "x y z"),
        ('"%s %d", __print_hex(REC->a, 2), REC->a[1]', {"a": [1, 2, 3]}, "01 02 2"),
        ('"%s", __print_array(__get_dynamic_array(a), 2, 4)', {"a": [1, 255]}, "{0x1,0xff}"),
        ('"%pM %pI4 %p", REC->a, REC->b, (void *)REC->c',
         {"a": [1, 2, 3, 4, 5, 6], "b": bytes([10, 0, 0, 1]), "c": 255},
         "01:02:03:04:05:06 10.0.0.1 0xff"),
        ('"a\\tb\\x41\\101 %d" "c", ~REC->a & 0xf && !0', {"a": 0}, "a\tbAA 1c"),
    ],
)  # fmt: skip
def test_prints_what_the_kernel_prints(print_fmt: str, row: dict[str, object], text: str) -> None:
    assert render(_event(print_fmt, *row), row) == text


@pytest.mark.parametrize(
    "print_fmt",
    [
        '"%d", unknown_function(REC->a)',
        '"%d %d", REC->a',
        "nonsense(",
        '"%d", 1 / (REC->a - 1)',
        '"%d", REC->other',
        "",
    ],
)
def test_falls_back_to_the_fields(print_fmt: str) -> None:
    assert render(_event(print_fmt, "a", "b"), {"a": 1, "b": None}) == "a=1 b=?"


def test_fields_that_share_a_column_name_are_found() -> None:
    assert render(_event('"%d", REC->pid', "pid"), {"pid": 1, "field_pid": 2}) == "2"


def test_tables_of_values() -> None:
    event = _event('"%s", __print_symbolic(REC->a, { 0, "off" }, { 1, "on" })', "a")

    assert value_tables(event) == {"a": ValueTable(((0, "off"), (1, "on")))}
    assert [value_tables(event)["a"].text(value) for value in (0, 1, 2)] == ["off", "on", "0x2"]


@given(
    st.text(alphabet='"%dsx*(),REC->a{}[]?:!~ 019<<\\', max_size=60), st.integers(-(1 << 63), (1 << 64) - 1)
)
def test_any_print_fmt_gives_a_text(print_fmt: str, value: int) -> None:
    render(_event(print_fmt, "a"), {"a": value})
    render(_event(f'"%s", {print_fmt}', "a"), {"a": value})


@pytest.mark.parametrize(
    "bomb",
    [
        "(" * 5000,
        "!" * 5000,
        "~" * 5000 + "1",
        '"%*d", 99999999, 1',
        '"%999999999d", 1',
        '"%d", 1 << 9999999',
    ],
)
def test_bombs_are_harmless(bomb: str) -> None:
    assert len(render(_event(bomb, "a"), {"a": 1})) < 1000
    assert len(render(_event(f'"%d", {bomb}', "a"), {"a": 1})) < 1000


@pytest.mark.corpus
@pytest.mark.skipif(_CORPUS is None, reason="ITSTRACE_CORPUS names no folder of captures")
@needs_trace_cmd
@pytest.mark.parametrize("name", ["torture-6.1", "torture-6.12", "torture-7.3"])
def test_prints_what_the_reference_prints(name: str) -> None:
    path = Path(_CORPUS or "") / name / "trace.dat"
    run = subprocess.run(
        ["trace-cmd", "report", "-N", "-t", "-i", str(path)], capture_output=True, check=True
    )
    expected: dict[tuple[str, int, int], list[str]] = {}
    for line in run.stdout.decode("utf-8", "replace").splitlines():
        if found := re.match(r"\s*.*-\d+\s+\[(\d+)\]\s+(\d+)\.(\d+):\s+(\S+):\s+(.*)$", line):
            place = (found[4], int(found[1]), int(found[2]) * 10**9 + int(found[3]))
            expected.setdefault(place, []).append(found[5].strip())
    compared, wrong = 0, []
    with TraceDat.open(path) as capture:
        for block in capture.blocks(dict.fromkeys(capture.formats)):
            for full_name, frame in block.items():
                event = capture.formats[full_name]
                if event.name in KNOWN_DIFFERENCES:
                    continue
                for row in frame.head(2000).iter_rows(named=True):
                    text = render(event, row)
                    theirs = expected[event.name, row["cpu"], row["time_ns"]]
                    compared += 1
                    if text not in theirs:
                        wrong.append((text, theirs))

    assert wrong == []
    assert compared > 5000
