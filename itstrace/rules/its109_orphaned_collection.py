"""ITS109: MAPC V=0 while events use the collection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.findings import Finding, Kind, Severity, Subject
from itstrace.model import effects as fx
from itstrace.rules._past import Entries, past_of
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator


#: How many events a message names.
_NAMED = 6


@rule(
    "ITS109",
    kind=Kind.GUEST,
    severity=Severity.ERROR,
    claim="the guest unmapped a collection that events use",
    needs=("COMMANDS",),
    guest_sees="No interrupts of these events any more, and commands that move or discard them have no effect.",
    leads_to=("ITS103", "ITS302", "ITS603"),
)
def orphaned_collection(case: Case) -> Iterator[Finding]:
    """MAPC V=0 takes a collection away while events use it.

    ## What it finds
    MAPC with V=0 for a collection that mapped events go by.

    ## Why it matters
    On KVM these events lose their collection for good: mapping the same collection again does not bring it
    back, and every INT, MOVI and DISCARD of them fails until their device is unmapped. Hardware keeps the
    ICID in the entry, so that a guest that works there loses interrupts here.

    ## Where it comes from
    A guest that unmaps a CPU's collection on hot-unplug before it has moved the interrupts away.

    ## When it is wrong
    Events are left out since whose mapping commands were lost (their MOVI or DISCARD may be among them), or the guest
    has written the table registers (kexec, a reset, resume).

    ## What to do
    MOVI or DISCARD every event of the collection before MAPC V=0. To repair a running guest, unmap and map
    the devices named.
    """
    found = [
        (note, note.effect)
        for note in case.history.notes
        if isinstance(note.effect, fx.OrphanedCollection) and note.command_seq is not None
    ]
    if not found:
        return
    wanted = {
        (note.vm, effect.its, device, event) for note, effect in found for device, event, _ in effect.events
    }
    mapped = Entries(case.history.mappings, ("vm", "its", "device_id", "event_id"), wanted)
    past = past_of(case)
    for note, effect in found:
        its = note.vm, effect.its
        events = [
            one for one in effect.events if past.sure(mapped.before((*its, *one[:2]), note.seq), note.seq)
        ]
        if not events:
            continue
        shown = ", ".join(f"0x{device:x}/{event} (LPI {intid})" for device, event, intid in events[:_NAMED])
        more = f" and {len(events) - _NAMED} more" if len(events) > _NAMED else ""
        one = len(events) == 1
        yield case.finding(
            f"Collection {effect.icid} was unmapped at {seconds(note.time_ns)} while {len(events)} "
            f"event{'' if one else 's'} used it: {shown}{more}. "
            f"{'It has' if one else 'They have'} no target now{', for good' if effect.permanent else ''}.",
            mechanism="MAPC V=0 of a collection in use",
            vm=note.vm,
            its=effect.its,
            device_id=events[0][0],
            event_id=events[0][1],
            intid=events[0][2],
            subjects=tuple(Subject(*key, time_ns=note.time_ns, end_ns=note.time_ns) for key in events),
            time_ns=note.time_ns,
            end_ns=note.time_ns,
            count=len(events),
            blames=(note.command_seq,) if note.command_seq is not None else (),
            seqs=first_some([note.command_seq]),
        )
