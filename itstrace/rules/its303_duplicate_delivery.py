"""ITS303: delivered more often than injected."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Confidence, Finding, Kind, Severity
from itstrace.observe.joins import after, before
from itstrace.rules.case import Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import times

if TYPE_CHECKING:
    from collections.abc import Iterator

LPI = ["vm", "intid"]


@rule("ITS303", kind=Kind.LIFE, severity=Severity.ERROR, needs=("QUEUEINGS", "LIST_REGISTERS"))
def duplicate_delivery(case: Case) -> Iterator[Finding]:
    """An LPI was put into a list register as pending although nothing had made it pending again.

    ## What it finds
    A fill with pending state that no MSI, INT, re-reading of its configuration, fold of a still pending list
    register or pending table accounts for: the LPI is delivered more often than it was injected.

    ## Why it matters
    The driver's handler runs for an interrupt that its device did not raise; at best it costs time, at worst
    the device is not ready for it.

    ## Where it comes from
    vgic_v3_populate_lr that leaves pending_latch set when it fills the list register (then the fill's own
    return shows it); a latch set without vgic_queue_irq_unlock; a list register that was not cleared.

    ## When it is wrong
    A pending table read at EnableLPIs or MAPTI makes LPIs pending; on 6.1 its bytes are not recorded, and
    fills after such a read are left out. So are the first fill in the capture, and fills near lost records.

    ## What to do
    Look at populate_lr_ret in the evidence: pend must be 0 there. If it is, look for who set the latch since.
    """
    fills = case.lives.fills
    extra = fills.filter(
        (pl.col("latched_by") == "fill")
        | (pl.col("latched_by").is_null() & pl.col("was_latched").is_not_null())
    )
    if extra.is_empty():
        return
    extra = before(
        extra, case.observations.fills, LPI, last_fill="seq", last_ns="time_ns", last_kept="latch_kept"
    )
    extra = before(extra, _quiet_sources(case), ["vm"], sourced="seq")
    extra = extra.filter(pl.col("sourced").is_null() | (pl.col("sourced") < pl.col("last_fill").fill_null(0)))
    extra = case.without_lost(extra, "last_ns", "time_ns")
    for (_, intid), rows in extra.group_by(LPI, maintain_order=True):
        first = rows.row(0, named=True)
        delivered = int(rows["taken"].sum())
        kept = bool(rows["last_kept"].fill_null(value=False).any())
        cause = (
            " The fill before it left pending_latch set (vgic_v3_populate_lr must clear it)." if kept else ""
        )
        yield case.finding(
            f"LPI {intid} was filled into a list register of vCPU {first['vcpu']} as pending {times(rows.height)} without a new "
            f"injection; the guest took {delivered} of them.{cause}",
            confidence=Confidence.CERTAIN if kept else Confidence.LIKELY,
            vcpus=tuple(sorted(rows["vcpu"].unique().to_list())),
            **case.about(rows),
            seqs=_evidence(case, first),
        )


def _quiet_sources(case: Case) -> pl.DataFrame:
    """Records that may set latches without showing which: the pending table read, where its bytes were not recorded."""
    events = case.observations.vm_events
    what = ["restore_tables"] if case.observations.guest_reads.height else ["restore_tables", "enable_lpis"]
    return events.filter(pl.col("what").is_in(what)).select("vm", "seq")


def _evidence(case: Case, first: dict[str, object]) -> tuple[int, ...]:
    """The last injection, the fill that took it, what its return and its fold showed, and the fill too many."""
    at = pl.DataFrame(
        {"vm": [first["vm"]], "intid": [first["intid"]], "seq": [first["last_fill"]], "pid": [first["pid"]]}
    ).cast({"vm": pl.UInt16, "intid": pl.UInt32, "seq": pl.UInt64, "pid": pl.Int32})
    queued = before(at, case.observations.queueings, LPI, found="seq")["found"].to_list()
    fill = case.observations.fills.join(at, on="seq", how="semi")["end_seq"].to_list()
    returns = after(at, case.observations.fill_returns, ["pid"], found="seq")["found"].to_list()
    return first_some([*queued, first["last_fill"], *returns, *fill, first["seq"], first["end_seq"]])  # type: ignore[list-item]
