"""ITS402: queued for, or filled on, a vCPU that the commands moved it away from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from itstrace.findings import Finding, Kind, Severity
from itstrace.rules._moves import LPI
from itstrace.rules._targets import KEPT, OFF_TARGET, SHARED, off_target
from itstrace.rules.case import Case, first_some
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
    for (_, intid, mechanism, _by), mine in rows.group_by([*LPI, "mechanism", "blamed"], maintain_order=True):
        first, last = mine.row(0, named=True), mine.row(-1, named=True)
        count = max(1, int(mine["fresh"].sum()))
        vcpus = sorted({first["vcpu"], first["expected"]})
        late = last["time_ns"] - (case.command_time(first["blamed"]) or last["time_ns"])
        yield case.finding(
            f"{_story(case, first)} it was {first['what']} vCPU {first['vcpu']} at {seconds(first['time_ns'])} "
            f"({times(count)}).",
            mechanism=str(mechanism),
            suspect=_SUSPECT.get(str(mechanism), case.rule.suspect),
            guest_saw=_guest_saw(case, first["all_taken"]),
            vcpus=tuple(vcpus),
            blames=tuple(seq for seq in (first["blamed"],) if seq is not None),
            worst=f"LPI {intid} went to vCPU {last['vcpu']} still {duration(late)} after the command, at "
            f"{seconds(last['time_ns'])}",
            measure=float(late),
            **case.about(mine, count=count),
            seqs=first_some([first["set_by"], first["blamed"], *mine["seq"].head(4).to_list()]),
        )


def _guest_saw(case: Case, taken: int) -> str:
    if taken:
        return f"It took the interrupt {times(taken)} on the vCPU that it had been moved away from."
    return "It was not seen taking it there." if case.recorded("fill", "fold") else ""


def _story(case: Case, row: dict[str, Any]) -> str:
    """Which vCPU the LPI was to go to, and why it did not."""
    said = case.command_text(row["set_by"])
    when = seconds(case.command_time(row["set_by"]))
    if row["off"]:
        by = f" (since {said} at {when})" if said else ""
        return f"The target of LPI {row['intid']} was vCPU {row['expected']}{by}, but"
    story = f"{said} at {when} gave LPI {row['intid']} to vCPU {row['expected']}"
    if row["mechanism"] == SHARED:
        return f"{story}; another event maps that LPI, and its interrupt kept the target that it had:"
    if row["blamed"] is not None and row["blamed"] != row["set_by"]:
        later = f"{case.command_text(row['blamed'])} at {seconds(case.command_time(row['blamed']))}"
        return f"{story}. {later} gave it another target, though it does not name it:"
    return f"{story}, but"
