"""ITS402: queued for, or filled on, a vCPU that the commands moved it away from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.rules._moves import commands_named
from itstrace.rules._targets import KEPT, OFF_TARGET, SHARED, off_target
from itstrace.rules.case import LPI, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import duration, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator

_SUSPECT = {
    OFF_TARGET: ("vgic_flush_lr_state", "vgic_target_oracle"),
    SHARED: ("vgic_its_cmd_handle_mapi", "vgic_add_lpi"),
    KEPT: ("vgic_its_map_lpi", "vgic_add_lpi"),
}


@rule(
    "ITS402",
    kind=Kind.HOST,
    severity=Severity.ERROR,
    claim="KVM sent an LPI to the vCPU that it had been moved away from",
    needs=("COMMANDS", "QUEUEINGS"),
    suspect=("update_affinity",),
    guest_sees="The interrupt still goes to the vCPU that it was moved away from.",
    leads_to=("ITS401", "ITS404"),
)
def stale_target(case: Case) -> Iterator[Finding]:
    """After a command gave an LPI to another vCPU, it was queued for, or filled on, the old one anew.

    ## What it finds
    An LPI queued for a target (irq->target_vcpu) that is not the vCPU which MOVI, MOVALL, MAPC or MAPTI gave it,
    or filled into a list register of a vCPU that is not its target. What made the target wrong is named: the
    command that did not set it, or the later one that set it to something else.

    ## Why it matters
    The guest has moved the interrupt, and waited for SYNC; it may have taken the old CPU down, or freed what
    its handler needs. The interrupt still comes there.

    ## Where it comes from
    update_affinity that does not take (the collection changes, irq->target_vcpu does not); a MOVI that KVM did not
    carry out; MOVALL of 6.12, which moves every LPI of the VM (ITS204); MAPTI of an LPI whose interrupt is still
    referenced keeps its old target (6.12 and older; mended in 7.x by vgic_its_map_lpi); two events that share one
    LPI (ITS106): one interrupt has one target. Filled off its target: vgic_flush_lr_state that does not ask
    vgic_target_oracle.

    ## When it is wrong
    While the command is under way, both vCPUs are right. An LPI that is on the old vCPU's list already stays
    there until that vCPU's next exit: that is allowed, and not reported here. An active LPI stays where it
    is. MOVALL leaves collections as they are; what counts is the LPI's target.

    ## What to do
    Compare the target in the evidence (tgt=) with the command's collection. If the command was a MAPTI right
    after a DISCARD, it is the known bug; otherwise look at update_affinity.
    """
    rows = off_target(case)
    named = commands_named(case, pl.concat([rows["set_by"], rows["blamed"]]))
    for (_, intid, mechanism), mine in rows.group_by([*LPI, "mechanism"], maintain_order=True):
        first = mine.row(0, named=True)
        worst = mine.sort("late_ns", nulls_last=False).row(-1, named=True)
        blamed = mine["blamed"].drop_nulls().unique(maintain_order=True)
        yield case.finding(
            f"{_story(named, first)} it was {first['what']} vCPU {first['vcpu']} at {seconds(first['time_ns'])} "
            f"({times(max(1, int(mine['fresh'].sum())))}).",
            mechanism=str(mechanism),
            suspect=_SUSPECT.get(str(mechanism), case.rule.suspect),
            guest_saw=_guest_saw(case, first["all_taken"]),
            vcpus=tuple(sorted({first["vcpu"], first["expected"]})),
            blames=tuple(blamed),
            worst=f"LPI {intid} went to vCPU {worst['vcpu']} still {duration(worst['late_ns'])} after the command, at "
            f"{seconds(worst['time_ns'])}"
            if worst["late_ns"] is not None
            else "",
            measure=float(worst["late_ns"] or 0),
            **case.about(mine, count=max(1, int(mine["fresh"].sum()))),
            seqs=first_some([first["set_by"], first["blamed"], *mine["seq"].head(4).to_list()]),
        )


def _guest_saw(case: Case, taken: int) -> str:
    if taken:
        return f"It took the interrupt {times(taken)} on the vCPU that it had been moved away from."
    return "It was not seen taking it there." if case.recorded("fill", "fold") else ""


def _story(named: dict[int, tuple[str, int]], row: dict[str, Any]) -> str:
    """Which vCPU the LPI was to go to, and why it did not."""

    def said(seq: int) -> str:
        text, time_ns = named[seq]
        return f"{text} at {seconds(time_ns)}"

    if row["off"]:
        by = f" (since {said(row['set_by'])})" if row["set_by"] in named else ""
        return f"The target of LPI {row['intid']} was vCPU {row['expected']}{by}, but"
    story = f"{said(row['set_by'])} gave LPI {row['intid']} to vCPU {row['expected']}"
    if row["mechanism"] == SHARED:
        return f"{story}; another event maps that LPI, and its interrupt kept the target that it had:"
    if row["blamed"] is not None and row["blamed"] != row["set_by"]:
        return f"{story}. {said(row['blamed'])} gave it another target, though it does not name it:"
    return f"{story}, but"
