"""ITS404: taken on the vCPU that it had been moved away from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Confidence, Finding, Kind, Severity
from itstrace.observe.joins import after
from itstrace.rules._moves import MOVERS, commands_named, moves, pruned, synced
from itstrace.rules._targets import off_target
from itstrace.rules.case import LPI, NEVER, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import duration, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator

_ANEW = "filled anew on the old vCPU"
_KEPT = "left in the old vCPU's list register past its exit"
_WINDOW = "in the old vCPU's list register as it was moved"

#: States of a list register that was read back: what the guest had taken.
_TAKEN = [0, 2]


@rule(
    "ITS404",
    kind=Kind.HOST,
    severity=Severity.NOTE,
    claim="KVM delivered an LPI on its old vCPU after the move",
    needs=("COMMANDS", "QUEUEINGS", "LIST_REGISTERS", "RUNS"),
    suspect=("update_affinity", "kvm_vgic_sync_hwstate"),
    guest_sees="It took the interrupt on the old vCPU after MOVI and SYNC.",
)
def delivered_on_old_vcpu(case: Case) -> Iterator[Finding]:
    """An LPI was taken on the vCPU that it had been moved away from, after the move and its SYNC.

    ## What it finds
    An LPI that the guest took out of a list register of the old vCPU although MOVI, MOVALL or MAPC, and the SYNC of
    that vCPU's redistributor, were complete. Until the old vCPU's next exit this is a note: the LPI was in its list
    register when it was moved, and KVM does not call it back. Past that exit it is an error: the register was not
    read back, or the LPI was filled into it anew (ITS402 says why).

    ## Why it matters
    After SYNC a guest counts on it that the old CPU hears no more of the interrupt: it takes that CPU down, or frees
    what the handler there needs.

    ## Where it comes from
    update_affinity changes irq->target_vcpu and nothing else: no list register is looked at, and no vCPU kicked. An
    LPI in the old vCPU's list register stays there until that vCPU leaves the guest.

    ## When it is wrong
    When the guest acknowledged it is not recorded. If the vCPU entered the guest with it only after the SYNC, that was
    after the move; else it may have been before, and the finding says so. Moves without a SYNC for the old vCPU's
    redistributor promise nothing and are left out, as are LPIs that were moved again meanwhile, and lost records.

    ## What to do
    Nothing about the note, but know that the window is there. For an error see the finding that it follows from, or
    look at why kvm_vgic_sync_hwstate did not fold the list register at the exit.
    """
    yield from _anew(case)
    yield from _kept(case)


def _anew(case: Case) -> Iterator[Finding]:
    """Filled on the old vCPU after the move, and taken there."""
    rows = off_target(case).filter(
        (pl.col("what") == "filled on")
        & pl.col("taken")
        & pl.col("wanted").is_in(MOVERS)
        & (pl.col("blamed") == pl.col("set_by"))
    )
    rows = synced(case, rows.with_columns(by="set_by")).filter(pl.col("sync_end_seq") <= pl.col("seq"))
    named = commands_named(case, rows["by"])
    for (_, intid), mine in rows.sort("seq").group_by(LPI, maintain_order=True):
        first, last = mine.row(0, named=True), mine.row(-1, named=True)
        late = last["time_ns"] - last["sync_ns"]
        yield case.finding(
            f"{named[first['by']][0]} gave LPI {intid} to vCPU {first['expected']}, and SYNC for vCPU {first['vcpu']} "
            f"was complete at {seconds(first['sync_ns'])}; but it was filled into a list register of vCPU {first['vcpu']} at "
            f"{seconds(first['time_ns'])}, and taken there ({times(mine.height)}).",
            severity=Severity.ERROR,
            mechanism=_ANEW,
            blames=tuple(mine["by"].unique(maintain_order=True)),
            vcpus=tuple(sorted({first["vcpu"], first["expected"]})),
            worst=f"LPI {intid} was filled on vCPU {last['vcpu']} {duration(late)} after the SYNC, at {seconds(last['time_ns'])}",
            measure=float(late),
            **case.about(mine),
            seqs=first_some([first["by"], first["sync_seq"], *mine["seq"].head(4).to_list()]),
        )


def _kept(case: Case) -> Iterator[Finding]:
    """In the old vCPU's list register across the move and its SYNC, and taken out of it."""
    rows = _across(case)
    named = commands_named(case, rows["by"])
    for (_, intid, past, later), mine in rows.group_by([*LPI, "past", "later"], maintain_order=True):
        first = mine.row(0, named=True)
        certain = bool(later)
        yield case.finding(
            f"LPI {intid} was in a list register of vCPU {first['vcpu']} since {seconds(first['time_ns'])} when "
            f"{named[first['by']][0]} at {seconds(first['move_ns'])} gave it to vCPU {first['new']}. SYNC was complete, "
            f"and when the register was read back at {seconds(first['end_ns'])} the guest had taken it ({times(mine.height)}). "
            + (
                f"That was not at vCPU {first['vcpu']}'s first exit since, which was over by {seconds(first['pruned_ns'])}."
                if past
                else f"That was at vCPU {first['vcpu']}'s next exit: KVM allows it until then."
            ),
            severity=Severity.ERROR if past else Severity.NOTE,
            confidence=Confidence.CERTAIN if certain else Confidence.LIKELY if past else Confidence.UNPROVEN,
            doubt=""
            if certain
            else f"vCPU {first['vcpu']} was in the guest as the LPI was moved, and may have taken it before.",
            capture_next="" if certain else "what the guest itself logs: KVM does not see an acknowledgement",
            mechanism=_KEPT if past else _WINDOW,
            guest_saw="It took the interrupt on the old vCPU, after the SYNC."
            if certain
            else "It took the interrupt on the old vCPU, before or after the SYNC.",
            blames=tuple(mine["by"].unique(maintain_order=True)),
            vcpus=tuple(sorted({first["vcpu"], first["new"]})),
            **case.about(mine),
            seqs=first_some(
                [
                    first["seq"],
                    first["entry_seq"],
                    first["by"],
                    first["sync_seq"],
                    first["pruned_seq"],
                    first["end_seq"],
                ]
            ),
        )


def _across(case: Case) -> pl.DataFrame:
    """Fills that were read back, taken, only after a move of their LPI and its SYNC were complete.

    Shape: vm, intid, seq, time_ns, vcpu, end_seq, end_ns; `by`, `move_ns`, `new` (the move), `sync_seq`, `entry_seq`
        (with the LPI), `later` (that was after the SYNC), `pruned_seq`, `pruned_ns` (the next exit after the SYNC),
        `past` (it was read back only after that).
    """
    obs = case.observations
    fills = obs.fills.filter(pl.col("pending") & ~pl.col("active") & pl.col("state").is_in(_TAKEN)).select(
        *LPI, "seq", "time_ns", "vcpu", "end_seq", "end_ns"
    )
    moved = moves(case).rename({"vcpu": "new", "time_ns": "move_ns"})
    rows = after(fills, moved, LPI, _move="seq", move_ns="move_ns", new="new", _by="by", _next="to_seq")
    rows = rows.rename({"_by": "by"}).filter(
        pl.col("by").is_not_null()
        & (pl.col("_move") < pl.col("end_seq"))
        & (pl.col("_next").fill_null(NEVER) > pl.col("end_seq"))
        & (pl.col("new") != pl.col("vcpu"))
    )
    rows = synced(case, rows).filter(pl.col("sync_end_seq") < pl.col("end_seq")).sort("seq")
    rows = case.without_lost(rows, "time_ns", "end_ns")
    entry = obs.runs.next_entry(rows.select("vm", "vcpu", "seq"))["entry_seq"]
    exits = pruned(case, rows.select("vm", "vcpu", seq="sync_end_seq"))
    rows = rows.hstack([entry]).hstack(exits)
    return rows.with_columns(
        later=(pl.col("entry_seq") > pl.col("sync_end_seq")).fill_null(value=False),
        past=(pl.col("end_seq") > pl.col("pruned_seq")).fill_null(value=False),
    ).drop("_move", "_next")
