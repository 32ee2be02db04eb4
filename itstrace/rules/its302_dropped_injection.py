"""ITS302: an MSI came back with an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.gic.faults import Fault
from itstrace.observe.joins import before
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import times

if TYPE_CHECKING:
    from collections.abc import Iterator

_EBUSY = -16


@rule("ITS302", kind=Kind.LIFE, severity=Severity.ERROR, needs=("INJECTIONS",))
def dropped_injection(case: Case) -> Iterator[Finding]:
    """An MSI came back with an error, and is gone.

    ## What it finds
    An MSI that KVM refused: no event maps it, its collection is not mapped, the ITS is disabled, or the
    target vCPU's EnableLPIs is 0. INT commands that are refused because the ITS or the redistributor is off
    are counted too; INT of unmapped events is ITS102.

    ## Why it matters
    The device has raised its interrupt; nothing is latched, and nothing will come.

    ## Where it comes from
    A device that fires before its driver has mapped the event, or after it took it down; MSI data or address
    that the guest wrote wrong; interrupts during the guest's reset, kexec or the bring-up of a CPU.

    ## When it is wrong
    A refusal while a driver unloads is expected: the device is still running. Of an event that was mapped
    before it is a warning only. A refusal at reset or boot is expected, too.

    ## What to do
    Compare device and event with `itstrace tables --at` that moment: was the event not mapped yet, or no
    longer? For EBUSY, look for who wrote EnableLPIs or GITS_CTLR.
    """
    rows = case.observations.injections.filter(pl.col("result").is_not_null() & (pl.col("result") != 0))
    rows = rows.filter(pl.col("from_command").is_null() | (pl.col("result") < 0))
    ended = case.history.mappings.drop_nulls("to_seq").select(
        "vm", "its", "device_id", "event_id", seq="to_seq"
    )
    rows = before(rows, ended, ["vm", "its", "device_id", "event_id"], taken_down="seq")
    for (_, _, device, event, result), mine in rows.group_by(
        ["vm", "its", "device_id", "event_id", "result"], maintain_order=True
    ):
        first = mine.row(0, named=True)
        what = f"event {event} of device 0x{device:x}" if device is not None else "an unknown device"
        late = result > 0 and mine["taken_down"].null_count() == 0
        since = ", which had been taken down" if late else ""
        yield case.finding(
            f"An MSI of {what}{since} was dropped ({times(mine.height)}): {_reason(result)}.",
            **case.about(mine),
            severity=Severity.WARNING if late else case.rule.severity,
            seqs=first_some(
                [first["from_command"], first["seq"], first["end_seq"], *mine["seq"].slice(1, 3).to_list()]
            ),
        )


def _reason(result: int) -> str:
    if result == _EBUSY:
        return "the ITS is disabled, or the target vCPU's EnableLPIs is 0 (EBUSY)"
    if result == int(Fault.INT_UNMAPPED_INTERRUPT):
        return (
            "the event, or the collection that it goes by, is not mapped (INT_UNMAPPED_INTERRUPT, 0x010307)"
        )
    if result > 0:
        name = Fault(result).name if result in set(Fault) else "unknown command error"
        return f"{name}, 0x{result:06x}"
    return f"errno {-result}"
