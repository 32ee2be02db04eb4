"""ITS108: MAPD over a device in use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.findings import Finding, Kind, Severity
from itstrace.model import effects as fx
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule("ITS108", kind=Kind.GUEST, severity=Severity.WARNING, needs=("COMMANDS",))
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
    Where the DISCARDs were lost, or lie before the capture.

    ## What to do
    DISCARD the events and MAPD V=0 the device before mapping it again; look for MSIs after this point that
    were refused (ITS302).
    """
    for note in case.history.notes:
        effect = note.effect
        if isinstance(effect, fx.LiveDeviceRemapped):
            shown = ", ".join(f"{event} (LPI {intid})" for event, intid in effect.events[:6])
            more = f" and {len(effect.events) - 6} more" if len(effect.events) > 6 else ""
            ended = (
                "Its ITT is the same, and in memory still maps them."
                if effect.kept
                else f"{case.host} unmapped them all."
            )
            yield case.finding(
                f"Device 0x{effect.device_id:x} was mapped again while {len(effect.events)} of its events were mapped: "
                f"{shown}{more}. {ended}",
                vm=note.vm,
                its=effect.its,
                device_id=effect.device_id,
                time_ns=note.time_ns,
                end_ns=note.time_ns,
                count=len(effect.events),
                seqs=first_some([note.command_seq]),
            )
