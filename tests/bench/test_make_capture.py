"""bench/make_capture.py: trace-cmd and we read the number of events asked for, to the last time stamp."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.trace_cmd import needs_trace_cmd, report
from helpers.tracedat_writer import Buffer, Event, Field, Machine, Page, TraceFile

from itstrace.readers import open_capture

SCRIPT = Path(__file__).parents[2] / "bench" / "make_capture.py"
FORMS = [("v6", "none"), ("v7", "none"), ("v7", "zstd")]
MACHINE = Machine()
TICK = Event(300, "demo", "tick", [Field("u64", "number", "Q"), Field("u64", "time", "Q")])


def _make(base: Path, events: int, form: tuple[str, str], out: Path) -> tuple[int, int]:
    """Run the script; give the first and the last time that it says."""
    options = ["--from", str(base), "--events", str(events), "--format", form[0], "--compression", form[1]]
    command = [sys.executable, str(SCRIPT), *options, "-o", str(out)]
    said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    assert f"events  {events:,}: " in said
    span = re.search(r"^span +(\d+) to (\d+) ns", said, re.MULTILINE)
    assert span is not None
    return int(span[1]), int(span[2])


def _check(path: Path, events: int, span: tuple[int, int]) -> pl.DataFrame:
    """Hold both readers' counts and times against each other; give trace-cmd's records."""
    theirs = report(path).records
    last = theirs.group_by("cpu").agg(pl.col("time_ns").max()).sort("cpu")["time_ns"]
    with open_capture(path) as capture:
        assert len(theirs) == events == capture.counts()["records"].sum()
        assert (theirs["time_ns"].min(), last.max()) == span == capture.span()
        assert capture.damage() == []
        per_cpu = capture.counts().group_by("cpu").agg(pl.col("records").sum()).sort("cpu")
        assert theirs.group_by("cpu").len("records").sort("cpu").equals(per_cpu.cast({"records": pl.UInt32}))
    return theirs


def _base(path: Path) -> Path:
    """Write 2 CPUs of 150 records each: short and long gaps, absolute stamps, discarded records, losses."""
    cpus: dict[int, list[Page]] = {}
    for cpu in range(2):
        time = 7_000_000_000 + 40 * cpu
        cpus[cpu] = [Page(MACHINE, 4096, time)]
        for number in range(150):
            time += (300, 1 << 30, 5_000)[number % 3]
            payload = TICK.payload(MACHINE, 10, [number, time])
            if number % 50 == 49:
                cpus[cpu].append(Page(MACHINE, 4096, time, lost=(None, 3, -1)[number // 50]))
            if number % 11 == 5:
                assert cpus[cpu][-1].absolute(time)
            if number % 13 == 6:
                assert cpus[cpu][-1].record(time, payload, discard=True)
                time = cpus[cpu][-1].clock
                payload = TICK.payload(MACHINE, 10, [number, time])
            assert cpus[cpu][-1].record(time, payload)
    return TraceFile([TICK], [Buffer(cpus)], MACHINE, comms={10: "clock"}).write(path)


@needs_trace_cmd
@pytest.mark.parametrize("form", FORMS, ids=" ".join)
@pytest.mark.parametrize("events", [1, 300, 300 + 151, 3 * 300 + 299])
def test_every_record_moves_with_its_copy(tmp_path: Path, form: tuple[str, str], events: int) -> None:
    base, out = _base(tmp_path / "base.dat"), tmp_path / "out.dat"
    theirs = _check(out, events, _make(base, events, form, out))
    original = report(base).records
    # Copy by copy the same records, in the same order over all CPUs, as far apart; the last one ends early.
    for part in theirs.iter_slices(300):
        moved = part.with_columns(pl.col("time_ns") - part["time_ns"][0] + original["time_ns"][0])
        assert moved.equals(original.head(len(part)))
    assert theirs["time_ns"].is_sorted()


@needs_trace_cmd
@pytest.mark.corpus
@pytest.mark.skipif("ITSTRACE_CORPUS" not in os.environ, reason="ITSTRACE_CORPUS names no folder of captures")
@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_three_of_a_real_capture(tmp_path: Path, form: tuple[str, str]) -> None:
    base, out = Path(os.environ["ITSTRACE_CORPUS"]) / "torture-6.12" / "trace.dat", tmp_path / "out.dat"
    original = report(base).records
    events = 3 * len(original) - 1234
    theirs = _check(out, events, _make(base, events, form, out))
    columns = ["cpu", "pid", "comm", "event"]
    for part in theirs.select(columns).iter_slices(len(original)):
        assert part.equals(original.select(columns).head(len(part)))


def test_what_cannot_be_a_base_is_refused(tmp_path: Path) -> None:
    base = tmp_path / "base.dat"
    base.write_bytes(b"no capture")
    command = [sys.executable, str(SCRIPT), "--from", str(base), "-o", str(tmp_path / "out.dat")]
    run = subprocess.run(command, capture_output=True, check=False, text=True)
    assert run.returncode == 1
    assert run.stderr == f"{base} is no trace.dat\n"
