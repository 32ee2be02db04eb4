"""ITS906: records of one call belie each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.observe import PROBES
from itstrace.observe.joins import before
from itstrace.rules.case import LPI, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule("ITS906", kind=Kind.EVIDENCE, severity=Severity.NOTE, claim="records contradict each other")
def contradictory_records(case: Case) -> Iterator[Finding]:
    """Records of one call contradict each other, or lack their partner.

    ## What it finds
    An entry to a function without its return, or a return without its entry, on a task that called it again; a
    record that every such call makes and this one did not; two records of one call that give different values
    for one thing; a value that all other records belie, as a pointer that no other names or a register that
    nobody wrote; ITS commands that are missing from the chain of their queue although no buffer overran.

    ## Why it matters
    Something that happened is not in the capture, or is there with a value that cannot be right, and the kernel
    has counted no loss. A finding that rests on these records may be an artefact of the recording.

    ## Where it comes from
    A kprobe that was missed (one probe hit within another), a kretprobe that ran out of instances (maxactive),
    a probe definition whose offsets or registers are those of another kernel build, two events recorded for one
    call, a capture that was filtered or edited.

    ## When it is wrong
    Records near the begin of the capture, near its end, and near lost records are not judged.

    ## What to do
    Look at kprobe_profile in tracefs: its last column counts misses. Give kretprobes more instances (`r64:`),
    and make the definitions anew for the kernel that runs.
    """
    rows = case.observations.contradictions
    rows = rows.with_columns(
        from_ns=pl.min_horizontal("from_ns", "time_ns"), to_ns=pl.max_horizontal("to_ns", "time_ns")
    )
    rows = case.without_lost(rows, "from_ns", "to_ns")
    for (probe, partner, what, field), mine in rows.group_by(
        ["probe", "partner", "what", "field"], maintain_order=True
    ):
        first = mine.row(0, named=True)
        one, other = (case.observations.fed_by.get(name, name) for name in (probe, partner))
        yield case.finding(
            f"{_said(one, other, what, field)} ({times(mine.height)}, first at {seconds(first['time_ns'])}).",
            mechanism=f"{probe} against {partner}: {what} {field or ''}".strip(),
            time_ns=first["time_ns"],
            end_ns=mine["time_ns"].max(),
            count=mine.height,
            seqs=first_some(mine["seq"].head(4)),
            advice=f"{case.rule.section('What to do')} The function is {PROBES[probe].kernel}.",
        )
    yield from _missing_commands(case)
    yield from _unset_latches(case)
    yield from _wrong_owners(case)


def _said(probe: str, partner: str, what: str, field: str | None) -> str:
    match what:
        case "no return":
            return f"{probe} was recorded without the {partner} that must follow before the task's next one"
        case "no entry":
            return f"{probe} was recorded without the {partner} that must stand before it"
        case "missing":
            return f"A call of which {partner} was recorded has no {probe}, which each such call makes"
        case "twice":
            return f"{probe} was recorded twice in one call of which {partner} was recorded once"
        case "at odds":
            return f"{probe} was recorded with a value of {field} that all other records belie"
    return f"{probe} and {partner} of one call say different things of {field}"


def _missing_commands(case: Case) -> Iterator[Finding]:
    """Commands that the queue's read pointer passed and no record shows, where no buffer overran."""
    commands = case.observations.commands
    rows = commands.with_columns(
        _before=pl.col("time_ns").shift(1).over("vm", "its"), _slot=pl.col("slot").shift(1).over("vm", "its")
    ).filter("lost_before")
    rows = case.without_lost(rows, "_before", "time_ns")
    for (vm, its), mine in rows.group_by(["vm", "its"], maintain_order=True):
        first = mine.row(0, named=True)
        since = f" and 0x{first['_slot']:x}" if first["_slot"] is not None else " and the one before it"
        yield case.finding(
            f"ITS commands were not recorded although no buffer overran ({times(mine.height)}): first between the slots "
            f"0x{first['slot']:x}{since} of the queue, before {seconds(first['time_ns'])}. The tables are assumed from there on.",
            mechanism="commands missing from the chain of the queue",
            vm=vm,
            its=its,
            time_ns=first["time_ns"],
            end_ns=mine["time_ns"].max(),
            count=mine.height,
            seqs=first_some(mine["seq"].head(4)),
            **({"advice": "Look for lines that were cut out of the log."} if case.host == "QEMU" else {}),
        )


def _unset_latches(case: Case) -> Iterator[Finding]:
    """LPIs queued as pending after a reading of their configuration, though nothing had made them so.

    Kernel: vgic-its.c:update_lpi_config leaves pending_latch alone (v6.12)
    """
    rows = case.observations.queueings.filter((pl.col("cause") == "inv") & pl.col("pending"))
    rows = before(rows, case.lives.latches, LPI, _latched="latched", _by="by", from_ns="time_ns")
    rows = rows.filter(~pl.col("_latched") & pl.col("_by").is_in(["queue", "fill"]))
    yield from _belied(case, rows, "pend", "whose latch nothing had set since it was last seen clear")


def _wrong_owners(case: Case) -> Iterator[Finding]:
    """LPIs queued as being on a list already, though they were on none: never put there, or delivered and left behind.

    Kernel: vgic.c:vgic_prune_ap_list takes what is neither pending nor active off the list at each exit (v6.12)
    """
    obs = case.observations
    rows = before(obs.queueings, obs.queueings, LPI, _queued="seq")
    rows = before(
        rows, obs.fills, LPI, _filled="seq", _folded="end_seq", _state="state", vcpu="vcpu", from_ns="time_ns"
    )
    rows = before(rows, obs.retargets, LPI, _moved="seq")
    last = pl.max_horizontal("_queued", pl.col("_moved").fill_null(0))
    rows = rows.filter(
        (pl.col("_filled") > last) & (pl.col("_state") == 0) & (pl.col("_folded") < pl.col("seq"))
    )
    since = rows.select("vm", "vcpu", seq="_folded")
    rows = rows.hstack(obs.runs.next_entry(since).select("entry_seq"))
    rest = (pl.col("entry_seq") < pl.col("seq")).fill_null(value=False)
    rows = rows.filter(rest & pl.col("owner_vcpu").is_not_null())
    # One that was on no list, and had no reason to go on one, is on none.
    idle = before(
        obs.queueings,
        obs.queueings,
        LPI,
        from_ns="time_ns",
        _owner="owner_vcpu",
        _irq="irq",
        _pending="pending",
        _enabled="enabled",
        _active="active",
    )
    listed = (pl.col("_pending") & pl.col("_enabled")) | pl.col("_active") | pl.col("_owner").is_not_null()
    same = pl.col("_irq") == pl.col("irq")
    idle = idle.filter((same & ~listed & pl.col("owner_vcpu").is_not_null()).fill_null(value=False))
    columns = [*obs.queueings.columns, "from_ns"]
    rows = pl.concat([rows.select(columns), idle.select(columns)])
    yield from _belied(
        case, rows.unique("seq").sort("seq"), "vcpup", "as being on a list, though it was on none"
    )


def _belied(case: Case, rows: pl.DataFrame, field: str, said: str) -> Iterator[Finding]:
    """One finding about queueings of which one field cannot be right."""
    rows = case.without_lost(rows, "from_ns", "time_ns")
    if rows.is_empty():
        return
    first = rows.row(0, named=True)
    event = case.observations.fed_by.get("queue", "queue_irq")
    yield case.finding(
        f"{event} of LPI {first['intid']} was recorded at {seconds(first['time_ns'])} {said} ({times(rows.height)}).",
        mechanism=f"queue: {field} that nothing set",
        **case.about(rows, vcpus=()),
        seqs=first_some(rows["seq"].head(4)),
    )
