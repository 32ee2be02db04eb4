"""ITS301: pending and enabled, its vCPU runs, and it is not delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Confidence, Finding, Kind, Severity
from itstrace.observe.joins import after, before
from itstrace.rules.case import NEVER, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import duration, seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.observe.runs import Runs

LPI = ["vm", "intid"]
VCPU = ["vm", "vcpu"]
#: Fewer list registers than any GIC has that KVM runs on; with that many in use an LPI may have to wait its
#: turn.
_LIST_REGISTERS = 4


@rule("ITS301", kind=Kind.LIFE, severity=Severity.ERROR, needs=("QUEUEINGS", "LIST_REGISTERS", "RUNS"))
def lost_lpi(case: Case) -> Iterator[Finding]:
    """An enabled LPI is pending, its vCPU leaves and enters the guest, and does not take it along.

    ## What it finds
    An LPI that was queued, pending and enabled, for a vCPU which then left the guest and entered it again
    without the LPI in a list register. KVM fills every pending LPI of a vCPU at every entry, so it is on no
    list: lost until something else (another MSI, INV, a move) sets it going, or for ever.

    ## Why it matters
    The device has raised its interrupt and waits; the driver in the guest never hears of it. Disks time out,
    networks stall.

    ## Where it comes from
    vgic_queue_irq_unlock that does not put the LPI on the ap_list; an ap_list emptied
    (vgic_flush_pending_lpis) while the latch stays set; a fold that drops a list register's state.

    ## When it is wrong
    An LPI that is moved on its way is judged by other rules. With all list registers in use an LPI waits its
    turn; it is then reported, as likely, only if it never came. An entry that was under way when the LPI was
    queued is not counted, nor is one near lost records.

    ## What to do
    Follow the LPI with `itstrace lpi`: what came between its queueing and the vCPU's next entry? Does a later
    MSI find it without an owner (vcpup=0) although its latch is set?
    """
    rows = _passed_over(case)
    for (_, intid), mine in rows.group_by(LPI, maintain_order=True):
        first = mine.row(0, named=True)
        never = int(mine["next_fill"].is_null().sum())
        worst = mine.select((pl.col("next_fill_ns") - pl.col("time_ns")).max()).item()
        after_all = f", for {duration(worst)} at the longest" if worst is not None else ""
        gone = f"; {times(never)} it never came" if never else ""
        crowded = bool(mine["crowded"].all())
        yield case.finding(
            f"LPI {intid} was pending and enabled for vCPU {first['vcpu']} at {seconds(first['time_ns'])}, but the vCPU entered "
            f"the guest at {seconds(first['entry_ns'])} without it. Passed over {times(mine.height)}{after_all}{gone}.",
            confidence=Confidence.LIKELY if crowded else Confidence.CERTAIN,
            vcpus=(first["vcpu"],),
            **case.about(mine, end_ns=mine["entry_ns"].max()),
            seqs=first_some(
                [first["seq"], first["exit_seq"], first["entry_seq"], first["next_queue"], first["next_fill"]]
            ),
        )


def _passed_over(case: Case) -> pl.DataFrame:
    """Queueings after which the vCPU left and entered the guest without the LPI, one row per stretch in which it waited."""
    obs = case.observations
    rows = obs.queueings.filter(pl.col("pending") & pl.col("enabled") & ~pl.col("active")).drop_nulls(
        "target_vcpu"
    )
    rows = rows.with_columns(vcpu=pl.col("target_vcpu"))
    # Only vCPUs whose running is known; the rest cannot be judged.
    run = pl.DataFrame(list(obs.runs.entries), schema={"vm": pl.UInt16, "vcpu": pl.Int32}, orient="row")
    rows = rows.join(run, on=VCPU, how="semi", maintain_order="left")
    rows = after(rows, obs.fills, LPI, next_fill="seq", next_fill_ns="time_ns")
    rows = after(rows, obs.queueings, LPI, next_queue="seq")
    rows = _entered_without(rows, obs.runs)
    end = pl.min_horizontal(pl.col("next_fill").fill_null(NEVER), *_excuses(case, rows))
    rows = rows.filter(pl.col("entry_seq").is_not_null() & (pl.col("entry_seq") < end))
    rows = before(rows, obs.fills, LPI, last_fill="seq")
    # One stretch of waiting is one: the queueings between two fills.
    rows = rows.sort("seq").unique(["vm", "intid", "last_fill"], keep="first", maintain_order=True)
    used = obs.folds.select("vm", "vcpu", "used", seq="seq")
    rows = rows.rename({"seq": "queued"}).with_columns(seq=pl.col("entry_seq"))
    rows = after(rows, used, VCPU, used="used").drop("seq").rename({"queued": "seq"}).sort("seq")
    # With every list register in use an LPI waits its turn; that it never comes is worth a word all the same.
    rows = rows.with_columns(crowded=pl.col("used").fill_null(0) >= _LIST_REGISTERS)
    rows = rows.filter(~pl.col("crowded") | pl.col("next_fill").is_null())
    return case.without_lost(rows, "time_ns", "entry_ns")


def _entered_without(rows: pl.DataFrame, runs: Runs) -> pl.DataFrame:
    """The target's exit after the LPI was surely on its list, and its next entry, at which it must be filled.

    Queued anew, it is on the list when the call is over. Found on another vCPU's list, it comes over when that
    vCPU prunes its list after its next exit, and surely before it enters again.
    """
    owner = rows.select("vm", vcpu=pl.coalesce("owner_vcpu", "target_vcpu"), seq="settled_seq")
    left = owner.with_columns(seq=runs.next_exit(owner)["exit_seq"])
    back = runs.next_entry(left)["entry_seq"]
    away = pl.col("owner_vcpu").is_not_null() & (pl.col("owner_vcpu") != pl.col("target_vcpu"))
    on_list = rows.with_columns(back=back).select(
        "vm", "vcpu", seq=pl.when(away).then("back").otherwise("settled_seq")
    )
    exits = runs.next_exit(on_list)
    entries = runs.next_entry(on_list.with_columns(seq=exits["exit_seq"]))
    return rows.hstack([exits["exit_seq"], entries["entry_seq"], entries["entry_ns"]])


def _excuses(case: Case, rows: pl.DataFrame) -> list[pl.Series]:
    """For each row, records after which the LPI had no business on that vCPU: moved, disabled, cleared, torn down."""
    history = case.history
    # A move that was under way when the LPI was queued counts too: it takes effect at the latest at its
    # command's end.
    targets = history.targets.filter(pl.col("from_seq").is_not_null())
    moved = targets.select("vm", "intid", seq=pl.coalesce(case.ends_of(targets["set_by"]), "from_seq"))
    seen = case.observations.retargets.select("vm", "intid", "seq")
    disabled = history.configurations.filter(~pl.col("enabled") & pl.col("from_seq").is_not_null()).select(
        "vm", "intid", seq="from_seq"
    )
    stopped = case.lives.latches.filter(~pl.col("latched") & (pl.col("by") != "fill")).select(
        "vm", "intid", "seq"
    )
    found = [
        after(rows.select("vm", "intid", "seq"), frame, LPI, stop="seq")["stop"].fill_null(NEVER)
        for frame in (moved, seen, disabled, stopped)
    ]
    ends = case.observations.vms.select("vm", stop=pl.col("to_seq").fill_null(NEVER))
    found.append(rows.sort("seq").join(ends, on="vm", how="left", maintain_order="left")["stop"])
    return found
