"""ITS113: the command queue used against its rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.findings import Finding, Kind, Severity
from itstrace.model import effects as fx
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import times

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.replay import Note


@rule("ITS113", kind=Kind.GUEST, severity=Severity.WARNING, needs=("COMMANDS", "REGISTER_WRITES"))
def queue_misuse(case: Case) -> Iterator[Finding]:
    """The guest uses the command queue or the table registers against their rules.

    ## What it finds
    GITS_CWRITER written with an offset beyond the queue or not a multiple of 32; commands left for an ITS
    that is disabled (CWRITER differs from CREADR); GITS_CBASER or GITS_BASER written while the ITS is
    enabled; the ITS enabled without valid tables.

    ## Why it matters
    KVM ignores the write: commands that the guest believes done are not, or are done later, when the ITS is
    enabled and other tables are in place.

    ## Where it comes from
    An ITS driver that does not wait for GITS_CTLR.Quiescent, a reset path that forgets to disable the ITS, a
    queue size that driver and register disagree about.

    ## When it is wrong
    Writes of the VMM (set-up, restore) are left out by the task that makes them; a VMM that writes from a
    vCPU thread is not told apart.

    ## What to do
    Look at the guest's order of writes in the evidence: disable, wait, write tables, enable, then write
    CWRITER.
    """
    groups: dict[tuple[int, int | None, str], list[Note]] = {}
    for note in case.history.notes:
        said = None if note.user else _misuse(note.effect, case.host)
        if said is not None:
            groups.setdefault((note.vm, getattr(note.effect, "its", None), said), []).append(note)
    for (vm, its, said), members in groups.items():
        first = members[0]
        yield case.finding(
            f"{said} ({times(len(members))}).",
            vm=vm,
            its=its,
            time_ns=first.time_ns,
            end_ns=members[-1].time_ns,
            count=len(members),
            seqs=first_some((note.seq for note in members), 4),
        )


def _misuse(effect: fx.Effect, host: str) -> str | None:
    match effect:
        case fx.RegisterIgnored(register, _, fx.RegisterReason.ITS_ENABLED):
            return f"{register} was written while the ITS is enabled; {host} ignores it"
        case fx.RegisterIgnored("GITS_CWRITER", value, fx.RegisterReason.OUT_OF_RANGE):
            return (
                f"GITS_CWRITER was written with 0x{value:x}, beyond the end of the queue; {host} ignores it"
            )
        case fx.RegisterIgnored("GITS_CTLR", _, fx.RegisterReason.INVALID_TABLES):
            return f"GITS_CTLR.Enabled was written without valid tables and queue; {host} ignores it"
        case fx.CwriterUnaligned():
            return "GITS_CWRITER was written with an offset that is no multiple of 32; the ITS rounds it down"
        case fx.CommandsWaiting():
            return "Commands were left in the queue of a disabled ITS; they wait until it is enabled"
    return None
