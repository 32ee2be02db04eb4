"""ITS107: MAPTI on a mapped event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.findings import Finding, Kind, Severity
from itstrace.model import effects as fx
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule("ITS107", kind=Kind.GUEST, severity=Severity.WARNING, needs=("COMMANDS",))
def event_remapped(case: Case) -> Iterator[Finding]:
    """MAPTI on an event that is mapped, with another LPI or collection.

    ## What it finds
    MAPTI or MAPI of an (DeviceID, EventID) that is mapped, and whose LPI or collection is not the one it has.

    ## Why it matters
    The architecture calls it UNPREDICTABLE. KVM keeps the first mapping and says nothing: the guest waits for
    an LPI that never comes, or on a CPU to which it does not come.

    ## Where it comes from
    A driver that sets up a vector twice (a probe after a failed probe, kexec, a missing DISCARD on unbind).

    ## When it is wrong
    Where the DISCARD between the two was lost. The same MAPTI again, with the same operands, is not reported.

    ## What to do
    DISCARD the event before mapping it anew, or use MOVI to change its collection.
    """
    for note in case.history.notes:
        effect = note.effect
        if isinstance(effect, fx.EventRemapped) and (effect.old_intid, effect.old_icid) != (
            effect.asked_intid,
            effect.asked_icid,
        ):
            kept = f"{case.host} keeps the first" if effect.kept else "the new one replaces it"
            yield case.finding(
                f"Event {effect.event_id} of device 0x{effect.device_id:x} maps LPI {effect.old_intid} (collection "
                f"{effect.old_icid}) and was mapped again to LPI {effect.asked_intid} (collection {effect.asked_icid}): {kept}.",
                vm=note.vm,
                its=effect.its,
                device_id=effect.device_id,
                event_id=effect.event_id,
                intid=effect.old_intid,
                time_ns=note.time_ns,
                end_ns=note.time_ns,
                seqs=first_some([note.command_seq]),
            )
