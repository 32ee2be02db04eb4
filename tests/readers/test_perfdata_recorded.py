"""What the installed perf records of this machine, in its many forms, compared with what it prints of it itself.

These tests need the right to record (root) and are skipped without it.
"""

from __future__ import annotations

import subprocess
from functools import cache
from typing import TYPE_CHECKING

import polars as pl
import pytest
from helpers.perf_script import all_samples, needs_perf, run_script, words

from itstrace.readers import open_capture
from itstrace.readers.perfdata import PerfData

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = needs_perf

EVENTS = ("-e", "sched:sched_switch", "-e", "sched:sched_process_exec", "-e", "sched:sched_process_fork")
#: Something that forks, execs and switches, and is over at once.
COMMAND = ("--", "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do sleep 0.002; done")
#: Of a group only the leader has samples. perf script makes others of them, for the other counters that it reads there.
#: Source: tools/perf/util/session.c:deliver_sample_group
LEADER_SAMPLED = "groups that are read"
FORMS: dict[str, tuple[str, ...]] = {
    "all CPUs": ("-a", *EVENTS),
    "one task": EVENTS,
    "one event, no ids": ("-e", "sched:sched_switch"),
    "call chains": ("-a", "-g", *EVENTS),
    "packed": ("-a", "-z", *EVENTS),
    "packed hard": ("-z22", *EVENTS),
    "monotonic clock": ("-k", "mono", "-a", *EVENTS),
    "raw monotonic clock": ("-k", "raw", *EVENTS),
    LEADER_SAMPLED: ("-e", "{sched:sched_switch,sched:sched_process_fork}:S"),
    "addresses, weights": ("-d", "--phys-data", "-a", *EVENTS),
    "with a counter that is no tracepoint": ("-a", "-e", "cpu-clock", *EVENTS),
    "per thread": ("--per-thread", "-T", "-e", "sched:sched_switch"),
    "small buffers": ("-a", "-m", "1", *EVENTS),
}


@cache
def _can_record() -> bool:
    command = ["perf", "record", "-o", "/dev/null", "-e", "sched:sched_switch", "--", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture(autouse=True)
def _recording() -> None:
    if not _can_record():
        pytest.skip("perf may not record tracepoints here (that needs root)")


def _record(path: Path, *options: str, pipe: bool = False) -> None:
    command = ["perf", "record", "-q", *options, "-o", "-" if pipe else str(path), *COMMAND]
    with path.open("wb") as out:
        run = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, check=False)
    if run.returncode:
        pytest.skip(f"perf record {' '.join(options)}: {run.stderr.decode().strip()}")


def _compare(path: Path, form: str) -> PerfData:
    capture = open_capture(path)
    assert isinstance(capture, PerfData)
    ours = all_samples(capture)
    theirs = run_script(path).filter(pl.col("event").str.starts_with("sched:"))
    if form == LEADER_SAMPLED:
        theirs = theirs.filter(pl.col("event") == "sched:sched_switch")
    have_cpu = "CPU" not in capture.info.options

    assert ours.height == theirs.height > 10
    # perf script keeps no order among samples of one time on different CPUs.
    columns = ["time_ns", "event", "pid", *(["cpu"] if have_cpu else [])]
    mine = ours.select(*columns, "text").sort(columns)
    other = theirs.select(
        pl.col("time").alias("time_ns"), "event", pl.col("tid").alias("pid"), "cpu", "text", "comm"
    )
    other = other.sort(columns)
    for column in columns:
        assert mine[column].to_list() == other[column].to_list(), column
    different = [
        (a, b)
        for a, b, event in zip(mine["text"], other["text"], mine["event"], strict=True)
        if event != "sched:sched_switch" and words(a) != words(b)
    ]
    assert different == []
    assert capture.damage() == []
    assert capture.disorder() == 0
    return capture


PIPED = ("all CPUs", "packed", "with a counter that is no tracepoint")


@pytest.mark.parametrize(
    ("form", "pipe"),
    [*((form, False) for form in FORMS), *((form, True) for form in PIPED)],
    ids=[*FORMS, *(f"{form}, pipe" for form in PIPED)],
)
def test_recorded_here_is_read_as_perf_script_reads_it(tmp_path: Path, form: str, pipe: bool) -> None:
    path = tmp_path / "here.data"
    _record(path, *FORMS[form], pipe=pipe)
    capture = _compare(path, form)

    clocks = {"monotonic clock": "mono", "raw monotonic clock": "mono_raw"}
    assert capture.info.clock == clocks.get(form, "perf")
    packed = " zstd" if form.startswith("packed") else ""
    assert capture.info.format == f"perf.data{' pipe' if pipe else ''}{packed}"
    assert capture.info.kernel


def test_losses_are_as_many_as_perf_says(tmp_path: Path) -> None:
    path = tmp_path / "lost.data"
    options = ("-a", "-m", "1", "-e", "sched:*", "-e", "raw_syscalls:*")
    _record(path, *options)
    command = ["perf", "script", "-f", "--show-lost-events", "-i", str(path)]
    text = subprocess.run(command, capture_output=True, check=True).stdout.decode("utf-8", "replace")
    told = [int(line.split()[-1]) for line in text.splitlines() if "PERF_RECORD_LOST lost" in line]
    with PerfData.open(path) as capture:
        lost = capture.gaps()["lost"].sum()

    assert lost >= sum(told)
    if not told:
        pytest.skip("nothing was lost here")
