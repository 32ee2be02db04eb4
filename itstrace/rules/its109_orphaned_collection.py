"""ITS109: MAPC V=0 while events use the collection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.findings import Finding, Kind, Severity
from itstrace.model import effects as fx
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule("ITS109", kind=Kind.GUEST, severity=Severity.ERROR, needs=("COMMANDS",))
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
    Where the MOVI or DISCARD of these events was lost, or lies before the capture.

    ## What to do
    MOVI or DISCARD every event of the collection before MAPC V=0. To repair a running guest, unmap and map
    the devices named.
    """
    for note in case.history.notes:
        effect = note.effect
        if isinstance(effect, fx.OrphanedCollection) and note.command_seq is not None:
            shown = ", ".join(
                f"0x{device:x}/{event} (LPI {intid})" for device, event, intid in effect.events[:6]
            )
            more = f" and {len(effect.events) - 6} more" if len(effect.events) > 6 else ""
            for_good = ", for good" if effect.permanent else ""
            device, event, intid = effect.events[0]
            one = len(effect.events) == 1
            yield case.finding(
                f"Collection {effect.icid} was unmapped while {len(effect.events)} event{'' if one else 's'} used it: "
                f"{shown}{more}. "
                f"{'It has' if one else 'They have'} no target now{for_good}.",
                vm=note.vm,
                its=effect.its,
                device_id=device if one else None,
                event_id=event if one else None,
                intid=intid if one else None,
                time_ns=note.time_ns,
                end_ns=note.time_ns,
                count=len(effect.events),
                seqs=first_some([note.command_seq]),
            )
