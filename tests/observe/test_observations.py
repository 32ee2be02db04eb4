"""Observations against trace-cmd's own words, on every kernel's probes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import CORPUS, SAMPLES, analysis_of
from helpers.trace_cmd import needs_trace_cmd, report

from itstrace.gic.commands import decode
from itstrace.observe.commands import _Batch, _chain

if TYPE_CHECKING:
    from pathlib import Path

CAPTURES = [
    SAMPLES / name
    for name in ("6.12-clean.dat", "6.1-clean.dat", "7.3-migrate.dat", "7.3-guest-mistakes.dat")
]
if CORPUS:
    CAPTURES += [
        CORPUS / name / "trace.dat"
        for name in ("boot-6.12", "torture-6.1", "torture-7.3", "faults/MV-clean-612")
    ]


def _words(text: str) -> dict[str, int]:
    return {name: int(value, 0) for name, value in re.findall(r"(\w+)=(0x[0-9a-f]+|-?[0-9]+)(?= |$)", text)}


@needs_trace_cmd
@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_commands_are_those_that_trace_cmd_shows(path: Path) -> None:
    """Every its_cmd_off, or where that was not recorded every read of 32 bytes, once and with its words."""
    records = report(path, "-R", "-t").records
    inside = records.filter(pl.col("event") == "its_cmd_off")
    if inside.is_empty():
        inside = records.filter((pl.col("event") == "its_cmd") & pl.col("text").str.contains(" len=32 "))
    theirs = sorted(
        (time_ns, pid, *(_words(text)[name] for name in ("dw0", "dw1", "dw2", "dw3")))
        for time_ns, pid, text in inside.select("time_ns", "pid", "text").iter_rows()
    )
    commands = analysis_of(path).observations.commands
    ours = sorted(commands.select("time_ns", "pid", "dw0", "dw1", "dw2", "dw3").iter_rows())

    assert ours == theirs


@needs_trace_cmd
@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_msis_are_those_that_trace_cmd_shows(path: Path) -> None:
    """Every its_inject_msi, with its device and event; INTs are the INT commands."""
    records = report(path, "-R", "-t").records.filter(pl.col("event") == "its_inject_msi")
    theirs = sorted(
        (time_ns, _words(text)["devid"], _words(text)["data"])
        for time_ns, text in records.select("time_ns", "text").iter_rows()
    )
    injections = analysis_of(path).observations.injections
    msis = injections.filter(pl.col("from_command").is_null())
    commands = analysis_of(path).observations.commands
    ints = [
        row[0]
        for row in commands.select("seq", "dw0", "dw1", "dw2", "dw3").iter_rows()
        if decode(row[1:]).name == "INT"
    ]

    assert sorted(msis.select("time_ns", "device_id", "event_id").iter_rows()) == theirs
    assert set(injections["from_command"].drop_nulls()) <= set(ints)


@needs_trace_cmd
@pytest.mark.parametrize("path", CAPTURES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_vcpus_run_on_the_tasks_that_fill_their_list_registers(path: Path) -> None:
    records = report(path, "-R", "-t").records.filter(pl.col("event") == "populate_lr")
    theirs = {(pid, _words(text)["vcpu"]) for pid, text in records.select("pid", "text").iter_rows()}
    vcpus = analysis_of(path).observations.vcpus

    assert theirs <= set(vcpus.select("pid", "vcpu").iter_rows())
    assert vcpus.select("vm", "vcpu").is_unique().all()


def test_a_vm_is_a_pointer_and_a_lifetime() -> None:
    """In the migration both VMs have one `struct kvm`; the first ends before the second begins."""
    vms = analysis_of(SAMPLES / "7.3-migrate.dat").observations.vms

    assert vms.height == 2
    assert vms["kvm"].n_unique() == 1
    assert vms["to_seq"][0] < vms["from_seq"][1] + 1000
    assert vms["end_ns"][0] is not None


@pytest.mark.corpus
def test_two_vms_at_once_are_kept_apart(corpus: Path) -> None:
    """The second VM's vCPU 1 never touches its ITS; it is told by whose vCPU is still without a task."""
    obs = analysis_of(corpus / "faults/MV-clean-612/trace.dat").observations

    assert obs.vms.height == 2
    assert sorted(obs.vcpus.iter_rows()) == [(0, 0, 8201), (0, 1, 8202), (1, 0, 9703), (1, 1, 9706)]
    assert obs.queueings["vm"].null_count() == 0
    assert obs.fills["vm"].null_count() == 0


def test_every_list_register_is_folded_with_what_the_guest_left_in_it() -> None:
    fills = analysis_of(SAMPLES / "6.12-clean.dat").observations.fills

    assert fills.filter(pl.col("ended_by") == "fold")["state"].null_count() == 0
    assert (fills["end_seq"] > fills["seq"]).all()


def test_batches_follow_the_queue_and_not_their_time_stamps() -> None:
    """Two CPUs whose clocks disagree: the stamps say b, a; the queue says a, b."""
    a = _Batch(seq=20, start=0x40, size_bytes=4096, slots=[0x40, 0x60], end=0x80)
    b = _Batch(seq=10, start=0x80, size_bytes=4096, slots=[0x80], end=0xA0)
    first = _Batch(seq=5, start=0, size_bytes=4096, slots=[0, 0x20], end=0x40)

    assert list(_chain([first, b, a])) == [(first, False), (a, False), (b, False)]


def test_a_break_in_the_queue_is_lost_commands() -> None:
    first = _Batch(seq=5, start=0, size_bytes=4096, slots=[0, 0x20], end=0x40)
    later = _Batch(seq=9, start=0x200, size_bytes=4096, slots=[0x200], end=0x220)

    assert list(_chain([first, later])) == [(first, False), (later, True)]


def test_a_new_queue_is_no_break() -> None:
    first = _Batch(seq=5, start=0, size_bytes=4096, slots=[0, 0x20], end=0x40)
    reset = _Batch(seq=9, start=0, size_bytes=8192, slots=[0], end=0x20)

    assert list(_chain([first, reset])) == [(first, False), (reset, False)]
