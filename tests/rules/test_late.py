"""ITS304: LPIs that come late. Where no capture shows a mechanism, it is put into a real one."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl
import pytest
from conftest import analysis_of
from helpers.again import found, sample, whole_gap
from helpers.cut import between, runs_where
from helpers.lives import runs_with

from itstrace import Confidence, Severity
from itstrace.observe.runs import WAITING, Stamps

if TYPE_CHECKING:
    from pathlib import Path

    from itstrace import Analysis


def slept_on(analysis: Analysis, *, vcpu_runs: bool = False) -> pl.DataFrame:
    """QUEUEINGS as they were if nobody had woken (or kicked) the vCPU: each at the begin of the stay that it ended."""
    obs = analysis.observations
    rows = obs.queueings.filter(pl.col("pending") & pl.col("enabled") & pl.col("owner_vcpu").is_null())
    rows = rows.join(
        obs.vcpus.select("vm", "pid", target_vcpu="vcpu"), on=["vm", "pid", "target_vcpu"], how="anti"
    )
    at = rows.select("vm", "seq", vcpu="target_vcpu")
    last, entry, leave = obs.runs.last_exit(at), obs.runs.next_entry(at), obs.runs.next_exit(at)
    rows = rows.with_columns(last, back=entry["entry_seq"], leave=leave["exit_seq"])
    if vcpu_runs:
        frame = obs.runs.frame().select("vm", "vcpu", "enter_seq", "enter_ns", leave="exit_seq")
        rows = rows.filter(pl.col("leave") < pl.col("back"))
        rows = rows.join(frame.rename({"vcpu": "target_vcpu"}), on=["vm", "target_vcpu", "leave"])
        rows = rows.with_columns(new_seq=pl.col("enter_seq") + 1, new_ns=pl.col("enter_ns") + 1)
    else:
        rows = rows.filter((pl.col("why") == WAITING) & (pl.col("back") < pl.col("leave")))
        rows = rows.with_columns(new_seq=pl.col("exit_seq") + 1, new_ns=pl.col("exit_ns") + 1)
    moved = obs.queueings.join(rows.select("seq", "new_seq", "new_ns"), on="seq", how="left")
    return (
        moved.with_columns(seq=pl.coalesce("new_seq", "seq"), time_ns=pl.coalesce("new_ns", "time_ns"))
        .select(obs.queueings.columns)
        .sort("seq")
    )


def test_late_as_the_truth_has_it() -> None:
    """The answer key counted 14 deliveries of more than 200 ms to a vCPU that nobody woke, 2.9 s at the most."""
    (late,) = [f for f in sample("6.12-late-delivery.dat").findings if f.code == "ITS304"]

    assert late.severity == Severity.WARNING
    assert late.confidence == Confidence.CERTAIN
    assert late.mechanism == "a vCPU that waited in WFI was not woken"
    assert late.count == 14
    assert late.vcpus == (1,)
    assert "2.90 s" in late.worst
    assert "kvm_vcpu_kick" in late.suspect


@pytest.mark.corpus
@pytest.mark.parametrize("folder", ["faults/F1-61", "faults/F9a-612", "faults/F5-73", "boot-6.12"])
def test_a_vcpu_that_nobody_wakes_is_late_on_every_kernel(corpus: Path, folder: str) -> None:
    """The vCPU's own timer is what wakes it: each LPI that came while it waited is moved to the begin of the wait."""
    analysis = analysis_of(corpus / folder / "trace.dat")
    slept = replace(analysis.observations, queueings=slept_on(analysis))
    (late,) = [f for f in found(analysis, slept, "ITS304") if f.severity == Severity.WARNING]

    assert late.mechanism == "a vCPU that waited in WFI was not woken"
    assert not found(analysis, analysis.observations, "ITS304")


def test_late_only_if_nothing_explains_it() -> None:
    analysis = sample("6.1-stale-target.dat")
    obs = replace(analysis.observations, queueings=slept_on(analysis))
    (late,) = found(analysis, obs, "ITS304")
    pid = obs.vcpus.filter(pl.col("vcpu") == late.vcpus[0])["pid"][0]

    assert late.severity == Severity.WARNING
    assert not found(analysis, analysis.observations, "ITS304")
    # Its own task queued it: the vCPU was out, and on its way back.
    own = obs.queueings.with_columns(pid=pl.lit(pid, dtype=pl.Int32))
    assert not found(analysis, replace(obs, queueings=own), "ITS304")
    # It left the guest for another reason than WFI: its thread was busy.
    trapped = runs_with(obs.runs, lambda _: True, why=0x24)
    assert not found(analysis, replace(obs, runs=trapped), "ITS304")
    # Records were lost.
    assert not found(analysis, obs, "ITS304", gaps=whole_gap(analysis))
    # A number of the user's own.
    assert not found(analysis, obs, "ITS304", settings={"late-floor-ms": 10_000})


def test_a_vm_that_was_saved_was_stopped() -> None:
    analysis = sample("6.12-late-delivery.dat")
    obs = analysis.observations
    ends = obs.fills.filter((pl.col("vcpu") == 1) & pl.col("pending"))
    saved = ends.select(
        pl.col("seq") - 1,
        "time_ns",
        "cpu",
        "pid",
        "vm",
        what=pl.lit("save_tables"),
        vcpu=None,
        its=None,
        intid=None,
    ).cast(obs.vm_events.schema)

    assert not found(
        analysis, replace(obs, vm_events=pl.concat([obs.vm_events, saved]).sort("seq")), "ITS304"
    )


def test_where_nothing_else_runs_it_is_a_note() -> None:
    """A VM of which nothing ran may have been paused. If all of it comes back together, it surely was."""
    analysis = sample("6.12-late-delivery.dat")
    obs = analysis.observations
    (note,) = found(analysis, replace(obs, runs=runs_with(obs.runs, lambda key: key[1] == 1)), "ITS304")

    assert (note.severity, note.confidence) == (Severity.NOTE, Confidence.UNPROVEN)
    together = copy.copy(obs.runs)
    together.entries = dict.fromkeys(obs.runs.entries, obs.runs.entries[0, 1])
    together.exits = dict.fromkeys(obs.runs.exits, obs.runs.exits[0, 1])
    later = together.entries[0, 1]
    together.entries[0, 0] = Stamps(later.seq + 1, later.time_ns + 1000)
    assert not found(analysis, replace(obs, runs=together), "ITS304")


def test_one_late_delivery_is_told_from_a_stall_of_the_machine() -> None:
    """One that is very late is enough where the others went on running; a machine that stood still explains it."""
    analysis = sample("6.12-late-delivery.dat")
    obs = analysis.observations
    (all_of_them,) = (finding for finding in analysis.findings if finding.code == "ITS304")
    begin, end = (
        next(one.seq for one in all_of_them.evidence if one.event == event and one.seq is not None)
        for event in ("queue_irq", "kvm_entry")
    )
    alone = replace(
        obs,
        queueings=obs.queueings.filter(
            (pl.col("target_vcpu") != 1) | (pl.col("cause") == "msi") | (pl.col("seq") == begin)
        ).filter((pl.col("target_vcpu") != 1) | (pl.col("seq") >= begin) & (pl.col("seq") < end)),
    )
    (one,) = found(analysis, alone, "ITS304")
    assert one.severity == Severity.WARNING
    still = runs_where(obs.runs, lambda seq: (seq < begin + 9) | (seq > end - 9))
    (stalled,) = found(analysis, replace(alone, runs=still), "ITS304")

    assert (stalled.severity, stalled.confidence) == (Severity.NOTE, Confidence.UNPROVEN)
    assert "too seldom to tell it from a stall" in stalled.doubt


def test_without_reasons_of_exits_it_is_a_note() -> None:
    """A capture whose kvm_exit has no esr_ec tells neither that the vCPU waited nor how the host schedules."""
    analysis = sample("6.12-late-delivery.dat")
    obs = analysis.observations
    mute = copy.copy(obs.runs)
    mute.exits = {key: Stamps(stamps.seq, stamps.time_ns) for key, stamps in obs.runs.exits.items()}
    (note,) = found(analysis, replace(obs, runs=mute), "ITS304")

    assert (note.severity, note.confidence) == (Severity.NOTE, Confidence.UNPROVEN)
    assert note.mechanism == "a vCPU that was out of the guest did not come back"


def test_a_vcpu_that_is_not_kicked_is_late() -> None:
    analysis = sample("6.12-clean.dat")
    late = replace(analysis.observations, queueings=slept_on(analysis, vcpu_runs=True))
    low = {"late-factor": 0.05, "late-floor-ms": 0.5}
    (kick,) = found(analysis, late, "ITS304", settings=low)
    usual = sum(f.count for f in found(analysis, analysis.observations, "ITS304", settings=low))

    assert kick.mechanism == "a vCPU that ran in the guest was not kicked"
    assert kick.count > usual
    assert not found(analysis, late, "ITS304")


def test_an_lpi_that_never_comes_before_the_end_is_late_too() -> None:
    """The capture ends while the vCPU still waits, with the LPI that it gets 2.9 s late in the whole one."""
    analysis = sample("6.12-late-delivery.dat")
    obs = analysis.observations
    (whole,) = (finding for finding in analysis.findings if finding.code == "ITS304")
    cut = next(one.seq for one in whole.evidence if one.event == "populate_lr" and one.seq is not None)
    (late,) = found(analysis, between(obs, until=cut - 1), "ITS304")

    assert late.count < whole.count
    assert "had not entered the guest when the capture or the VM ended" in late.message
