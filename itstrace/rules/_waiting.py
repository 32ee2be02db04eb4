"""LPIs that wait: pending and enabled, on their way into a list register. Shared by ITS301 and ITS304."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.gic.registers import GICR_CTLR
from itstrace.observe.joins import after, before
from itstrace.rules.case import LPI, NEVER, VCPU, once

if TYPE_CHECKING:
    from itstrace.rules.case import Case


@once
def queued(case: Case) -> pl.DataFrame:
    """Queueings that put a pending and enabled LPI on its vCPU's list, or found it there.

    Left out is an LPI that was on another vCPU's list still: it waits for its move (ITS403).
    Shape: rows of QUEUEINGS with `vcpu` and `since_seq` (see `stops`), in order of seq.
    """
    rows = case.observations.queueings.filter(pl.col("pending") & pl.col("enabled") & ~pl.col("active"))
    rows = rows.drop_nulls("target_vcpu").with_columns(vcpu="target_vcpu", since_seq="seq")
    return rows.filter(pl.col("owner_vcpu").is_null() | (pl.col("owner_vcpu") == pl.col("vcpu"))).sort("seq")


def stops(case: Case, rows: pl.DataFrame) -> pl.Series:
    """For each row (vm, vcpu, intid, seq, since_seq), the record from which the LPI had no business there any more; else NEVER.

    It was moved, disabled, cleared or unmapped (0: unmapped before it), the vCPU's LPIs were flushed, or the VM torn
    down. `since_seq` is the record from which that counts: what was under way then counts as well.
    """
    begun = rows.select("vm", "vcpu", "intid", seq="since_seq").with_row_index("_row")
    found = [
        after(begun, frame.drop_nulls("seq"), keys, stop="stop").sort("_row")["stop"].fill_null(NEVER)
        for keys, frame in _business_over(case)
    ]
    ends = case.observations.vms.select("vm", stop=pl.col("to_seq").fill_null(NEVER))
    found.append(begun.join(ends, on="vm", how="left", maintain_order="left")["stop"].fill_null(NEVER))
    entries = case.history.mappings.with_columns(seq=pl.col("from_seq").fill_null(0)).sort("seq")
    mapped = before(begun, entries, LPI, to="to_seq").sort("_row")
    gone = (pl.col("to") <= pl.col("seq")).fill_null(value=False)
    found.append(mapped.select(stop=pl.when(gone).then(0).otherwise(NEVER).cast(pl.UInt64))["stop"])
    frame = pl.DataFrame({str(number): column for number, column in enumerate(found)})
    return frame.select(stop=pl.min_horizontal(pl.all()))["stop"]


@once
def _business_over(case: Case) -> list[tuple[list[str], pl.DataFrame]]:
    """Records after which an LPI has no business on a vCPU's list, by the columns that they are found by.

    Shape: the columns, `stop` (the record), and `seq` (until when it may have been under way).
    """
    history, obs = case.history, case.observations
    # A move that was under way when the LPI was queued counts too: it takes effect at the latest at its
    # command's end.
    targets = history.targets.filter(pl.col("from_seq").is_not_null())
    mappings = history.mappings.drop_nulls("to_seq").drop_nulls("intid")
    by_lpi = [
        targets.select(*LPI, seq=pl.coalesce(case.ends_of(targets["set_by"]), "from_seq"), stop="from_seq"),
        mappings.select(*LPI, seq=pl.coalesce(case.ends_of(mappings["ended_by"]), "to_seq"), stop="to_seq"),
        obs.retargets.select(*LPI, "seq", stop="seq"),
        history.configurations.filter(~pl.col("enabled")).select(*LPI, seq="from_seq", stop="from_seq"),
        obs.queueings.filter(~pl.col("enabled")).select(*LPI, "seq", stop="seq"),
        case.lives.latches.filter(~pl.col("latched") & (pl.col("by") != "fill")).select(
            *LPI, "seq", stop="seq"
        ),
    ]
    return [
        *((LPI, frame.sort("seq")) for frame in by_lpi),
        (VCPU, flushes(case).select(*VCPU, "seq", stop="seq")),
    ]


@once
def flushes(case: Case) -> pl.DataFrame:
    """When EnableLPIs of a vCPU went to 0, which takes all LPIs off its list. Shape: vm, vcpu, seq, time_ns."""
    seen = case.observations.vm_events.filter(pl.col("what") == "flush_lpis")
    # GICR_CTLR.EnableLPIs is bit 0. Spec: IHI 0069H, GICR_CTLR.
    written = case.observations.redistributor_writes.filter(
        (pl.col("offset") == GICR_CTLR) & (pl.col("value") & 1 == 0)
    )
    names = [*VCPU, "seq", "time_ns"]
    return pl.concat([seen.select(names), written.select(names)]).drop_nulls("vcpu").sort("seq")
