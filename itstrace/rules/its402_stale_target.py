"""ITS402: queued for, or filled on, a vCPU that the commands moved it away from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator

LPI = ["vm", "intid"]


@rule("ITS402", kind=Kind.HOST, severity=Severity.ERROR, needs=("COMMANDS", "QUEUEINGS"))
def stale_target(case: Case) -> Iterator[Finding]:
    """After a command gave an LPI to another vCPU, it was queued for, or filled on, the old one anew.

    ## What it finds
    An LPI queued anew (it was on no list) whose irq->target_vcpu is not the vCPU that MOVI, MOVALL, MAPC or
    MAPTI gave it, or filled into a list register of a vCPU that is not its target.

    ## Why it matters
    The guest has moved the interrupt, and waited for SYNC; it may have taken the old CPU down, or freed what
    its handler needs. The interrupt still comes there.

    ## Where it comes from
    update_affinity that does not take (the collection changes, irq->target_vcpu does not); MAPTI of an LPI
    whose interrupt is still referenced keeps its old target (6.12 and older; mended in 7.x by
    vgic_its_map_lpi).

    ## When it is wrong
    While the command is under way, both vCPUs are right. An LPI that is on the old vCPU's list already stays
    there until that vCPU's next exit: that is allowed, and not reported here. An active LPI stays where it
    is.

    ## What to do
    Compare the target in the evidence (tgt=) with the command's collection. If the command was a MAPTI right
    after a DISCARD, it is the known bug; otherwise look at update_affinity.
    """
    obs = case.observations
    # Queued anew: with an owner it is on that vCPU's list already, and KVM leaves it there until the vCPU's
    # next exit.
    queued = obs.queueings.filter(
        pl.col("pending") & pl.col("owner_vcpu").is_null() & pl.col("target_vcpu").is_not_null()
    )
    parts = [
        queued.select(
            "vm", "intid", "seq", "time_ns", vcpu="target_vcpu", end_seq="seq", what=pl.lit("queued for")
        )
    ]
    filled = obs.fills.filter(pl.col("pending") & ~pl.col("active"))
    parts.append(
        filled.select("vm", "intid", "seq", "time_ns", "vcpu", end_seq="seq", what=pl.lit("filled on"))
    )
    rows = pl.concat(parts).sort("seq")
    wrong = case.compare(rows, case.history.targets, LPI, "target_vcpu", seen="vcpu", end="end_seq")
    wrong = wrong.filter(
        pl.col("expected").is_not_null()
        & pl.col("set_by").is_not_null()
        & ~pl.col("assumed").fill_null(value=True)
    )
    wrong = case.without_lost(wrong, "time_ns", "time_ns")
    for (_, intid), mine in wrong.group_by(LPI, maintain_order=True):
        first = mine.row(0, named=True)
        when = case.command_time(first["set_by"])
        since = f" at {seconds(when)}" if when is not None else ""
        yield case.finding(
            f"{case.command_text(first['set_by'])}{since} gave LPI {intid} to vCPU {first['expected']}, but it was "
            f"{first['what']} "
            f"vCPU {first['vcpu']} at {seconds(first['time_ns'])} ({times(mine.height)}).",
            vcpus=tuple(sorted({first["vcpu"], first["expected"]})),
            **case.about(mine),
            seqs=first_some([first["set_by"], *mine["seq"].head(4).to_list()]),
        )
