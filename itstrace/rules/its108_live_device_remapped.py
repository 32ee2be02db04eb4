"""ITS108: MAPD over a device in use."""

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
    "ITS108",
    kind=Kind.GUEST,
    severity=Severity.WARNING,
    claim="the guest mapped a device anew that still had events",
    needs=("COMMANDS",),
    leads_to=("ITS102", "ITS302"),
)
def live_device_remapped(case: Case) -> Iterator[Finding]:
    """MAPD V=1 over a device that still has mapped events.

    ## What it finds
    MAPD with V=1 for a device that is mapped and has events which were not discarded.

    ## Why it matters
    KVM frees the device with all its events and starts anew: interrupts that the guest still uses are
    unmapped without a DISCARD. Real hardware keeps what the old table holds, or not: it is UNPREDICTABLE.

    ## Where it comes from
    A driver that is probed again after a failed removal, kexec, or two drivers with one DeviceID.

    ## When it is wrong
    Events are left out since whose mapping commands were lost (their DISCARD may be among them), or the guest has
    written the table registers (kexec, a reset, resume).

    ## What to do
    DISCARD the events and MAPD V=0 the device before mapping it again; look for MSIs after this point that
    were refused (ITS302).
    """
    found = [
        (note, note.effect) for note in case.history.notes if isinstance(note.effect, fx.LiveDeviceRemapped)
    ]
    if not found:
        return
    wanted = {
        (note.vm, effect.its, effect.device_id, event) for note, effect in found for event, _ in effect.events
    }
    mapped = Entries(case.history.mappings, ("vm", "its", "device_id", "event_id"), wanted)
    past = past_of(case)
    for note, effect in found:
        device = note.vm, effect.its, effect.device_id
        events = [
            (event, intid)
            for event, intid in effect.events
            if past.sure(mapped.before((*device, event), note.seq), note.seq)
        ]
        if not events:
            continue
        shown = ", ".join(f"{event} (LPI {intid})" for event, intid in events[:_NAMED])
        more = f" and {len(events) - _NAMED} more" if len(events) > _NAMED else ""
        ended = (
            "Its ITT is the same, and in memory still maps them."
            if effect.kept
            else f"{case.host} unmapped {'it' if len(events) == 1 else 'them all'}."
        )
        many = "one of its events was" if len(events) == 1 else f"{len(events)} of its events were"
        yield case.finding(
            f"Device 0x{effect.device_id:x} was mapped again at {seconds(note.time_ns)} while {many} mapped: "
            f"{shown}{more}. {ended}",
            mechanism="MAPD over a device with mapped events",
            vm=note.vm,
            its=effect.its,
            device_id=effect.device_id,
            subjects=tuple(
                Subject(effect.device_id, event, intid, time_ns=note.time_ns, end_ns=note.time_ns)
                for event, intid in events
            ),
            time_ns=note.time_ns,
            end_ns=note.time_ns,
            count=len(events),
            guest_saw="" if effect.kept else "No interrupts of these events any more.",
            blames=() if note.command_seq is None else (note.command_seq,),
            seqs=first_some([note.command_seq]),
        )
