"""ITS311: pending when EnableLPIs went 1->0, and never again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.observe.joins import after, before
from itstrace.rules._pending import STILL_PENDING, next_fill, sources, with_latch
from itstrace.rules.case import LPI, NEVER, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule(
    "ITS311",
    kind=Kind.LIFE,
    severity=Severity.NOTE,
    claim="a pending interrupt was dropped by EnableLPIs=0",
    needs=("QUEUEINGS", "LIST_REGISTERS"),
    suspect=("vgic_flush_pending_lpis",),
    guest_sees="an interrupt that never comes",
    leads_to=("ITS301",),
)
def pending_dropped_by_disable(case: Case) -> Iterator[Finding]:
    """An LPI was pending for a vCPU whose EnableLPIs went to 0, and did not come back when it was enabled again.

    ## What it finds
    An LPI that was queued for a vCPU, or pending in its list register, when EnableLPIs went from 1 to 0, and that reached
    no list register afterwards unless a new MSI came.

    ## Why it matters
    The MSI is lost, and the guest asked for it. The architecture does not promise that pending LPIs outlive EnableLPIs=0;
    hardware may write them to the pending table, KVM does not.

    ## Where it comes from
    vgic_flush_pending_lpis takes the LPIs off the vCPU's ap_list. On 6.1.192 and 7.3 it clears pending_latch too; on
    6.12 the latch stays set, but nothing puts the LPI on a list before the next MSI.

    ## When it is wrong
    A guest that shuts a CPU down, or boots again, does not want them. LPIs in a list register of a vCPU that runs may be
    taken by it before it leaves. VMs that are torn down are left out.

    ## What to do
    In the guest: move the LPIs away (MOVI, SYNC) before EnableLPIs is cleared, or look at the devices afterwards.
    """
    rows = _dropped(case)
    if rows.is_empty():
        return
    rows = case.without_lost(rows, "time_ns", "back_ns")
    for row in rows.iter_rows(named=True):
        one = pl.DataFrame([row], schema=rows.schema)
        where = "queued for" if row["held"] is None else "pending in a list register of"
        end = (
            "it was never pending again"
            if row["sourced"] is None
            else f"it came again only with the MSI queued at {seconds(row['sourced_ns'])}"
        )
        yield case.finding(
            f"LPI {row['intid']} was {where} vCPU {row['vcpu']} when its EnableLPIs went to 0 at {seconds(row['time_ns'])}, and "
            f"was dropped; {end}.",
            mechanism="dropped by EnableLPIs=0",
            vcpus=(row["vcpu"],),
            **case.about(one),
            seqs=first_some([row["latched_seq"], row["held"], row["seq"], row["sourced"]]),
        )


def _dropped(case: Case) -> pl.DataFrame:
    """Flushed LPIs with what made them pending again (`sourced`), where no fill came before that."""
    obs = case.observations
    flushes = obs.vm_events.filter(pl.col("what") == "flush_lpis").drop_nulls("vcpu")
    ends = obs.vms.select("vm", gone="to_seq")
    flushes = flushes.join(ends, on="vm", how="left", maintain_order="left")
    flushes = flushes.filter(pl.col("seq") < pl.col("gone").fill_null(NEVER))
    known = case.lives.latches.select(LPI).unique()
    rows = flushes.select("vm", "vcpu", "seq", "time_ns").join(known, on="vm").sort("seq")
    if rows.is_empty():
        return rows
    rows = with_latch(case, rows)
    # An LPI that was latched while disabled is on no list, and keeps its latch.
    rows = before(rows, obs.queueings, LPI, on_list="enabled")
    queued = pl.col("latched") & pl.col("held").is_null() & pl.col("on_list").fill_null(value=True)
    queued &= pl.col("latched_vcpu") == pl.col("vcpu")
    in_register = (pl.col("held_vcpu") == pl.col("vcpu")) & pl.col("held_state").is_in(STILL_PENDING)
    rows = rows.filter(queued.fill_null(value=False) | in_register.fill_null(value=False))
    came = sources(case).join(obs.queueings.select("seq", "time_ns"), on="seq", how="left")
    rows = next_fill(after(rows, came, LPI, sourced="seq", sourced_ns="time_ns"), obs.fills)
    rows = rows.filter(pl.col("fill").fill_null(NEVER) > pl.col("sourced").fill_null(NEVER - 1))
    # What EnableLPIs=1 found in the pending table is no new MSI.
    on = obs.vm_events.filter(pl.col("what") == "enable_lpis").select("vm", "vcpu", "seq")
    rows = after(rows, on, ["vm", "vcpu"], enabled="seq")
    other = obs.queueings.filter(pl.col("cause") == "other").select(
        sourced="seq", restored=pl.lit(value=True)
    )
    rows = rows.join(other, on="sourced", how="left", maintain_order="left")
    table = case.history.pending_bits.filter("latched").select(*LPI, sourced="seq", bit=pl.lit(value=True))
    rows = rows.join(table.unique(), on=[*LPI, "sourced"], how="left", maintain_order="left")
    kept = pl.col("restored").fill_null(value=False) | pl.col("bit").fill_null(value=False)
    rows = rows.filter(~(kept & (pl.col("enabled").fill_null(NEVER) < pl.col("sourced").fill_null(0))))
    return rows.with_columns(back_ns=pl.coalesce("sourced_ns", "time_ns"))
