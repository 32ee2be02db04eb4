"""ITS401: one LPI, two vCPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.observe.joins import before
from itstrace.rules.case import NEVER, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds, times

if TYPE_CHECKING:
    from collections.abc import Iterator

LPI = ["vm", "intid"]


@rule("ITS401", kind=Kind.HOST, severity=Severity.ERROR, needs=("QUEUEINGS", "LIST_REGISTERS"))
def double_pending(case: Case) -> Iterator[Finding]:
    """One LPI is live on two vCPUs at once.

    ## What it finds
    An LPI that sits in a list register of one vCPU, not folded back, while it is queued for, or filled into a
    list register of, another. KVM gives an LPI one owner (irq->vcpu): it must leave the first vCPU's list
    registers before it can go to the second's.

    ## Why it matters
    Both vCPUs can acknowledge it: one MSI, two deliveries, on two CPUs of the guest, at the same time. This
    is what was feared in 2015, that moving an interrupt and its pending state is not atomic with its
    delivery.

    ## Where it comes from
    GICR_CTLR.EnableLPIs written to 0 on a vCPU that runs with the LPI in a list register:
    vgic_flush_pending_lpis takes it off the ap_list, kvm_vgic_sync_hwstate of 6.12 then returns early (the
    list is empty) and never folds the register, and the next MSI goes to wherever MOVI sent the LPI. Seen on
    6.1, 6.12 and 7.3.

    ## When it is wrong
    The window that the architecture allows is not this: after MOVI the old vCPU may take the LPI until its
    next exit, but KVM does not fill it on the new vCPU before. A fold that was not recorded looks the same,
    so spans with lost records are left out.

    ## What to do
    Keep EnableLPIs at 1 on vCPUs that run, or move their LPIs away and wait (SYNC) first. In KVM: fold list
    registers before flushing, and do not leave kvm_vgic_sync_hwstate early while used_lrs is not 0.
    """
    rows = _overlaps(case)
    for (_, intid), mine in rows.group_by(LPI, maintain_order=True):
        first = mine.row(0, named=True)
        filled = mine.filter(pl.col("other_kind") == "fill")
        both = filled.row(0, named=True) if filled.height else first
        flushed = _flush_between(case, both)
        cause = (
            f" Between the two, EnableLPIs of vCPU {both['vcpu']} went to 0 ({seconds(flushed['time_ns'])}): "
            "vgic_flush_pending_lpis took the LPI off the list and left it in the list register."
            if flushed
            else ""
        )
        ended = _end(both)
        how = "filled into a list register of" if filled.height else "queued for"
        yield case.finding(
            f"LPI {intid} was in a list register of vCPU {both['vcpu']} since {seconds(both['time_ns'])} and {how} vCPU "
            f"{both['other_vcpu']} at {seconds(both['other_ns'])}, {ended}: live on two vCPUs {times(mine.height)}.{cause}",
            vcpus=tuple(sorted({both["vcpu"], both["other_vcpu"]})),
            **case.about(mine, end_ns=mine["other_ns"].max()),
            seqs=first_some(
                [
                    both["seq"],
                    flushed["seq"] if flushed else None,
                    *_commands_between(case, both),
                    *_queue_before(case, both),
                    both["other_seq"],
                    both["end_seq"],
                ]
            ),
        )


def _overlaps(case: Case) -> pl.DataFrame:
    """Fills not yet folded when their LPI was filled, or newly queued, on another vCPU; one row per fill.

    For each fill the next record of its LPI on another vCPU is the one that may overlap it: the first of the
    next run of one vCPU.
    """
    obs = case.observations
    fills = obs.fills.select(
        "vm", "intid", "seq", "time_ns", "vcpu", "end_seq", "end_ns", "ended_by", kind=pl.lit("fill")
    )
    # With an owner the LPI is on that vCPU's list already, and stays there.
    queued = obs.queueings.filter(
        pl.col("pending") & pl.col("enabled") & pl.col("owner_vcpu").is_null()
    ).select(
        "vm",
        "intid",
        "seq",
        "time_ns",
        vcpu="target_vcpu",
        end_seq=pl.lit(None, dtype=pl.UInt64),
        end_ns=pl.lit(None, dtype=pl.Int64),
        ended_by=pl.lit(None, dtype=pl.String),
        kind=pl.lit("queue"),
    )
    both = pl.concat([fills, queued]).sort("vm", "intid", "seq")
    both = both.with_columns(
        run=(pl.col("vcpu") != pl.col("vcpu").shift(1).over(LPI)).fill_null(value=True).cum_sum().over(LPI)
    )
    heads = (
        both.group_by("vm", "intid", "run", maintain_order=True)
        .first()
        .select(
            "vm",
            "intid",
            run=pl.col("run") - 1,
            other_seq="seq",
            other_ns="time_ns",
            other_vcpu="vcpu",
            other_kind="kind",
        )
    )
    # The first fill of that run, if it is a fill that shows it best.
    first_fill = (
        both.filter(pl.col("kind") == "fill")
        .group_by("vm", "intid", "run", maintain_order=True)
        .first()
        .select("vm", "intid", run=pl.col("run") - 1, fill_seq="seq", fill_ns="time_ns")
    )
    rows = both.filter(pl.col("kind") == "fill").join(heads, on=["vm", "intid", "run"], how="inner")
    rows = rows.join(first_fill, on=["vm", "intid", "run"], how="left")
    until = pl.col("end_seq").fill_null(NEVER)
    rows = rows.filter((pl.col("other_seq") < until) & pl.col("other_vcpu").is_not_null())
    seen = pl.col("fill_seq").is_not_null() & (pl.col("fill_seq") < until)
    rows = rows.with_columns(
        other_kind=pl.when(seen).then(pl.lit("fill")).otherwise("other_kind"),
        other_seq=pl.when(seen).then("fill_seq").otherwise("other_seq"),
        other_ns=pl.when(seen).then("fill_ns").otherwise("other_ns"),
    )
    # A VM that ended between the two took its list registers along.
    ends = obs.vms.select("vm", _gone=pl.col("to_seq").fill_null(NEVER))
    rows = rows.join(ends, on="vm").filter(pl.col("other_seq") < pl.col("_gone")).drop("_gone")
    return case.without_lost(rows.sort("seq"), "time_ns", "other_ns")


def _end(row: dict[str, Any]) -> str:
    if row["ended_by"] == "fold":
        return f"while the first was folded only at {seconds(row['end_ns'])}"
    return "while the first was never folded"


def _flush_between(case: Case, row: dict[str, Any]) -> dict[str, Any] | None:
    events = case.observations.vm_events
    rows = events.filter(
        (pl.col("what") == "flush_lpis")
        & (pl.col("vm") == row["vm"])
        & (pl.col("vcpu") == row["vcpu"])
        & (pl.col("seq") > row["seq"])
        & (pl.col("seq") < row["other_seq"])
    )
    return rows.row(0, named=True) if rows.height else None


def _commands_between(case: Case, row: dict[str, Any]) -> list[int]:
    """Commands that moved the LPI in between."""
    targets = case.history.targets
    rows = targets.filter(
        (pl.col("vm") == row["vm"])
        & (pl.col("intid") == row["intid"])
        & (pl.col("from_seq") > row["seq"])
        & (pl.col("from_seq") < row["other_seq"])
    )
    return rows["set_by"].drop_nulls().to_list()


def _queue_before(case: Case, row: dict[str, Any]) -> list[int]:
    at = pl.DataFrame({"vm": [row["vm"]], "intid": [row["intid"]], "seq": [row["other_seq"]]}).cast(
        {"vm": pl.UInt16, "intid": pl.UInt32, "seq": pl.UInt64}
    )
    return before(at, case.observations.queueings, LPI, found="seq")["found"].drop_nulls().to_list()
