"""ITS114: a slot of the command queue that KVM could not read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Confidence, Finding, Kind, Severity
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator

#: How many slots a message names, and how many commands a finding is linked by.
_NAMED, _BLAMED = 6, 64


@rule(
    "ITS114",
    kind=Kind.GUEST,
    severity=Severity.ERROR,
    claim="a command of the guest could not be read",
    needs=("COMMANDS",),
    guest_sees="Nothing: CREADR goes on, and the command has no effect.",
    leads_to=("ITS101", "ITS102", "ITS103", "ITS203", "ITS302"),
)
def unreadable_command(case: Case) -> Iterator[Finding]:
    """A command slot could not be read.

    ## What it finds
    A slot of the command queue whose 32 bytes KVM could not read out of guest memory: kvm_read_guest returned an error.
    Where only the probe inside the loop of vgic_its_process_commands was recorded, which a failed read never reaches, a
    slot that a call went past without a command.

    ## Why it matters
    KVM goes on to the next slot and says nothing: what the command should have mapped, moved or unmapped stays as it was.

    ## Where it comes from
    GITS_CBASER that points at, or runs into, memory that is no RAM of the guest; memory that was unplugged or ballooned
    away; a VMM that changes its memory slots while the guest runs.

    ## When it is wrong
    A slot that was only passed over is likely, not certain: a probe may have been missed. Near lost records such slots are
    left out.

    ## What to do
    Compare the slot's address (GITS_CBASER plus the offset) with the VM's memory slots. To be certain, record the return
    of kvm_read_guest with its value.
    """
    commands = case.observations.commands.filter(~pl.col("readable")).sort("seq")
    for (vm, its), rows in commands.group_by("vm", "its", maintain_order=True):
        yield case.finding(
            f"{_slots(rows)} of the command queue could not be read at {seconds(rows['time_ns'][0])}: {case.host} passed "
            f"over what stood there ({times(rows.height)}).",
            mechanism="a command slot that could not be read",
            vm=vm,
            its=its,
            time_ns=rows["time_ns"][0],
            end_ns=rows["time_ns"][-1],
            count=rows.height,
            seqs=first_some(rows["seq"]),
            blames=tuple(rows["seq"].head(_BLAMED)),
        )
    skipped = case.observations.skipped_slots.with_columns(end_ns=pl.coalesce("end_ns", "time_ns"))
    skipped = case.without_lost(skipped, "time_ns", "end_ns").sort("seq")
    for (vm, its), rows in skipped.group_by("vm", "its", maintain_order=True):
        yield case.finding(
            f"{_slots(rows)} of the command queue gave no command, though {case.host} went past at "
            f"{seconds(rows['time_ns'][0])} and no records were lost: most likely the slot could not be read "
            f"({times(rows.height)}).",
            mechanism="a command slot that was passed over",
            vm=vm,
            its=its,
            time_ns=rows["time_ns"][0],
            end_ns=rows["time_ns"][-1],
            count=rows.height,
            confidence=Confidence.LIKELY,
            doubt="That the read failed was not recorded; the probe inside the loop may have been missed.",
            capture_next="the return of kvm_read_guest (its_cmd, with ret), where the kernel's probes can fetch it",
            seqs=first_some(rows["seq"]),
        )


def _slots(rows: pl.DataFrame) -> str:
    """`Slot 0x3e0`, `Slots 0x3e0, 0x400 and 3 more`."""
    slots = [f"0x{slot:x}" if slot is not None else "?" for slot in rows["slot"].unique(maintain_order=True)]
    more = f" and {len(slots) - _NAMED} more" if len(slots) > _NAMED else ""
    return f"Slot{'' if len(slots) == 1 else 's'} {', '.join(slots[:_NAMED])}{more}"
