"""ITS106: one LPI, two events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.findings import Finding, Kind, Severity
from itstrace.model import effects as fx
from itstrace.rules._past import Entries, past_of
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule

if TYPE_CHECKING:
    from collections.abc import Iterator


_REFUSED = "Nothing at once: the second event stays unmapped, and its interrupts never come."
_SHARED = "Interrupts of one event that come by the other's LPI and on the other's CPU, once either is moved or discarded."


@rule(
    "ITS106",
    kind=Kind.GUEST,
    severity=Severity.ERROR,
    claim="the guest mapped one LPI by two events",
    needs=("COMMANDS",),
    leads_to=("ITS102", "ITS302", "ITS402"),
)
def duplicate_lpi(case: Case) -> Iterator[Finding]:
    """One LPI is mapped by two events.

    ## What it finds
    MAPTI or MAPI that gives an event an LPI which another event, of the same VM, maps already.

    ## Why it matters
    The architecture calls it UNPREDICTABLE. On KVM before 7.3 both events share one interrupt: moving one
    moves the other, and discarding one can leave the other without. KVM 7.3 refuses the second (-EEXIST), and
    its device then has no interrupt.

    ## Where it comes from
    A guest that hands out LPIs from two allocators, or that reuses an LPI without DISCARD of its old event.

    ## When it is wrong
    Where commands were lost since the other event was mapped, or the guest has written the table registers since
    (kexec, a reset, resume), the rule is silent. An event that was mapped before the capture counts as mapped if an
    MSI of it shows that it is.

    ## What to do
    Look for who owns this LPI in the guest; discard the old event before the LPI is used again.
    """
    doubles = [(note, note.effect) for note in case.history.notes if isinstance(note.effect, fx.DuplicateLpi)]
    if not doubles:
        return
    others = {
        (note.vm, effect.other_its, effect.other_device_id, effect.other_event_id) for note, effect in doubles
    }
    mapped = Entries(case.history.mappings, ("vm", "its", "device_id", "event_id"), others)
    past = past_of(case)
    for note, effect in doubles:
        event = effect.other_device_id, effect.other_event_id
        other = mapped.before((note.vm, effect.other_its, *event), note.seq)
        if other is None or not past.sure(other, note.seq):
            continue
        end = (
            "KVM 7.x refuses it (-EEXIST): the new event stays unmapped"
            if effect.refused
            else "both now share one interrupt"
        )
        yield case.finding(
            f"LPI {effect.intid} was mapped to event {effect.event_id} of device 0x{effect.device_id:x} "
            f"while event {event[1]} of device 0x{event[0]:x} maps it: {end}.",
            mechanism="a second event for a mapped LPI was refused"
            if effect.refused
            else "two events share an LPI",
            vm=note.vm,
            its=effect.its,
            device_id=effect.device_id,
            event_id=effect.event_id,
            intid=effect.intid,
            time_ns=note.time_ns,
            end_ns=note.time_ns,
            guest_saw=_REFUSED if effect.refused else _SHARED,
            blames=() if note.command_seq is None else (note.command_seq,),
            seqs=first_some((other["set_by"], note.command_seq)),
        )
