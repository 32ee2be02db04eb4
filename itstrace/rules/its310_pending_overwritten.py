"""ITS310: a pending LPI wiped by the table read at EnableLPIs 0->1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Finding, Harm, Kind, Severity
from itstrace.observe.joins import after, before
from itstrace.rules._pending import latched, next_fill, sources
from itstrace.rules.case import LPI, NEVER, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule(
    "ITS310",
    kind=Kind.LIFE,
    severity=Severity.ERROR,
    claim="a pending interrupt was wiped by EnableLPIs=1",
    harm=Harm.GONE,
    needs=("QUEUEINGS",),
    suspect=("its_sync_lpi_pending_table", "vgic_enable_lpis", "vgic_mmio_write_v3r_ctlr"),
    guest_sees="an interrupt that never comes",
    leads_to=("ITS301",),
)
def pending_overwritten(case: Case) -> Iterator[Finding]:
    """An LPI that an MSI had made pending was wiped when a vCPU's EnableLPIs went to 1.

    ## What it finds
    An LPI that was pending, by an injection that no list register had taken, when KVM read the pending table of a vCPU
    whose EnableLPIs went from 0 to 1, and that was not pending any more after it.

    ## Why it matters
    The MSI is lost. The device has raised its interrupt and waits; no second one may ever come.

    ## Where it comes from
    its_sync_lpi_pending_table sets pending_latch to the bit in guest memory: it assigns, where it should add. The vCPU
    takes MSIs from the moment at which EnableLPIs is set, before its table is read; one that comes between is latched and
    then overwritten. So is an LPI that was moved to that vCPU while it was pending.

    ## When it is wrong
    If EnableLPIs went to 0 after the MSI came, the architecture does not promise that it is kept: that is ITS311. A
    restored VM that reads its pending tables loses nothing, as nothing was injected before.

    ## What to do
    In the guest: let devices raise interrupts, and move LPIs to a vCPU, only once its EnableLPIs is 1. In KVM:
    pending_latch |= bit.
    """
    rows = _wiped(case)
    for row in case.without_lost(rows, "latched_ns", "time_ns").iter_rows(named=True):
        one = pl.DataFrame([row], schema=rows.schema)
        never = row["fill"] is None
        end = "It was not delivered any more." if never else "It was delivered again only after a new MSI."
        yield case.finding(
            f"LPI {row['intid']} was pending since {seconds(row['latched_ns'])} when EnableLPIs of vCPU {row['vcpu']} went to 1 "
            f"at {seconds(row['enabled_ns'])}; KVM then took its pending state from guest memory, where it was not pending, "
            f"at {seconds(row['time_ns'])}: the MSI is lost. {end}",
            mechanism="pending state replaced by the pending table's at EnableLPIs 0->1",
            vcpus=(row["vcpu"],),
            worst=f"LPI {row['intid']} at {seconds(row['time_ns'])}",
            **case.about(one),
            seqs=first_some([row["latched_seq"], row["enabled_seq"], row["seq"], row["fill"]]),
        )


def _wiped(case: Case) -> pl.DataFrame:
    """LPIs found not pending while a vCPU's pending table was read, that were pending before.

    Kernel: vgic-mmio-v3.c:vgic_mmio_write_v3r_ctlr, vgic-its.c:vgic_enable_lpis, its_sync_lpi_pending_table (v6.12): it
        queues every LPI whose target the vCPU is, pending or not, on the task that enables.
    """
    obs = case.observations
    enabled = obs.vm_events.filter(pl.col("what") == "enable_lpis")
    rows = obs.queueings.filter(~pl.col("pending") & (pl.col("cause") != "inv"))
    if enabled.is_empty() or rows.is_empty():
        return pl.DataFrame()
    rows = before(rows, enabled, enabled_seq="seq", enabled_ns="time_ns", vcpu="vcpu")
    rows = rows.filter(pl.col("enabled_seq").is_not_null() & (pl.col("vcpu") == pl.col("target_vcpu")))
    # The read is over when the task does anything else.
    steps = pl.concat(
        [
            frame.select("pid", "seq")
            for frame in (
                obs.commands,
                obs.register_writes,
                obs.redistributor_writes,
                obs.injections,
                obs.vm_events,
            )
        ]
    )
    rows = before(rows, steps, step="seq").filter(pl.col("step") <= pl.col("enabled_seq"))
    entered = obs.runs.next_entry_of_task(rows.select("pid", seq="enabled_seq"))["entry_seq"]
    rows = rows.with_columns(entered=entered).filter(pl.col("seq") < pl.col("entered").fill_null(NEVER))
    rows = latched(case, rows).filter(
        pl.col("latched").fill_null(value=False) & pl.col("latched_by").is_in(["queue", "fold"])
    )
    flushed = obs.vm_events.filter(pl.col("what") == "flush_lpis").select("vm", "vcpu", "seq")
    rows = before(rows, flushed, ["vm", "vcpu"], flushed="seq")
    rows = rows.filter(pl.col("flushed").fill_null(0) <= pl.col("latched_seq"))
    rows = next_fill(after(rows, sources(case), LPI, sourced="seq"), obs.fills)
    # What came all the same was not lost.
    return rows.filter(pl.col("fill").fill_null(NEVER) > pl.col("sourced").fill_null(NEVER - 1))
