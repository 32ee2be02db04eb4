"""ITS106: one LPI, two events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.findings import Finding, Kind, Severity
from itstrace.model import effects as fx
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule("ITS106", kind=Kind.GUEST, severity=Severity.ERROR, needs=("COMMANDS",))
def duplicate_lpi(case: Case) -> Iterator[Finding]:
    """One LPI is mapped by two events.

    ## What it finds
    MAPTI or MAPI that gives an event an LPI which another event, of the same VM, maps already.

    ## Why it matters
    The architecture calls it UNPREDICTABLE. On KVM before 7.0 both events share one interrupt: moving one
    moves the other, and discarding one can leave the other without. KVM 7.3 refuses the second (-EEXIST), and
    its device then has no interrupt.

    ## Where it comes from
    A guest that hands out LPIs from two allocators, or that reuses an LPI without DISCARD of its old event.

    ## When it is wrong
    Where the other event's DISCARD was lost, or lies before the capture.

    ## What to do
    Look for who owns this LPI in the guest; discard the old event before the LPI is used again.
    """
    for note in case.history.notes:
        effect = note.effect
        if not isinstance(effect, fx.DuplicateLpi):
            continue
        other = f"event {effect.other_event_id} of device 0x{effect.other_device_id:x}"
        end = (
            "KVM 7.x refuses it (-EEXIST): the new event stays unmapped"
            if effect.refused
            else "both now share one interrupt"
        )
        yield case.finding(
            f"LPI {effect.intid} was mapped to event {effect.event_id} of device 0x{effect.device_id:x} "
            f"while {other} maps it: {end}.",
            vm=note.vm,
            its=effect.its,
            device_id=effect.device_id,
            event_id=effect.event_id,
            intid=effect.intid,
            time_ns=note.time_ns,
            end_ns=note.time_ns,
            seqs=first_some((*_set_by(case, note.vm, effect, note.seq), note.command_seq)),
        )


def _set_by(case: Case, vm: int, effect: fx.DuplicateLpi, seq: int) -> list[int | None]:
    keys = {
        "vm": vm,
        "its": effect.other_its,
        "device_id": effect.other_device_id,
        "event_id": effect.other_event_id,
    }
    return [row["set_by"] for row in case.live_rows(case.history.mappings, keys, seq)]
