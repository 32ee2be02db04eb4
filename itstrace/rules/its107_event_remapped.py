"""ITS107: MAPTI on a mapped event."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.findings import Finding, Kind, Severity
from itstrace.model import effects as fx
from itstrace.rules._past import Entries, past_of
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule(
    "ITS107",
    kind=Kind.GUEST,
    severity=Severity.WARNING,
    claim="the guest mapped an event anew that was mapped",
    needs=("COMMANDS",),
    guest_sees="Interrupts of the event by its old LPI and on its old CPU; the new LPI never comes.",
)
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
    Where commands were lost since the event was mapped, its DISCARD may be among them: the rule is silent, as it is
    where the guest has written the table registers since (kexec, a reset, resume). The same MAPTI again, with the
    same operands, is not reported.

    ## What to do
    DISCARD the event before mapping it anew, or use MOVI to change its collection.
    """
    again = [(note, note.effect) for note in case.history.notes if isinstance(note.effect, fx.EventRemapped)]
    again = [(note, effect) for note, effect in again if _differs(effect)]
    if not again:
        return
    events = {(note.vm, effect.its, effect.device_id, effect.event_id) for note, effect in again}
    mapped = Entries(case.history.mappings, ("vm", "its", "device_id", "event_id"), events)
    past = past_of(case)
    for note, effect in again:
        held = mapped.before((note.vm, effect.its, effect.device_id, effect.event_id), note.seq)
        if held is None or not past.sure(held, note.seq):
            continue
        kept = f"{case.host} keeps the first" if effect.kept else "the new one replaces it"
        by = "" if effect.old_icid is None else f" (collection {effect.old_icid})"
        yield case.finding(
            f"Event {effect.event_id} of device 0x{effect.device_id:x} maps LPI {effect.old_intid}{by} and was mapped "
            f"again to LPI {effect.asked_intid} (collection {effect.asked_icid}): {kept}.",
            mechanism="MAPTI of a mapped event with other operands",
            vm=note.vm,
            its=effect.its,
            device_id=effect.device_id,
            event_id=effect.event_id,
            intid=effect.old_intid,
            time_ns=note.time_ns,
            end_ns=note.time_ns,
            blames=() if note.command_seq is None else (note.command_seq,),
            seqs=first_some([held["set_by"], note.command_seq]),
        )


def _differs(effect: fx.EventRemapped) -> bool:
    """Whether the new operands are others than those of the old that are known."""
    pairs = (effect.old_intid, effect.asked_intid), (effect.old_icid, effect.asked_icid)
    return any(old is not None and old != asked for old, asked in pairs)
