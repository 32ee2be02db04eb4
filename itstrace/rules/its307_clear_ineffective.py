"""ITS307: delivered after CLEAR without a new injection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.observe.joins import after
from itstrace.rules._pending import STILL_PENDING, delivery, next_fill, sources, with_latch
from itstrace.rules.case import LPI, NEVER, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule(
    "ITS307",
    kind=Kind.LIFE,
    severity=Severity.NOTE,
    claim="an interrupt was delivered that CLEAR had taken away",
    needs=("COMMANDS", "QUEUEINGS", "LIST_REGISTERS"),
    guest_sees="an interrupt whose pending state it had cleared",
)
def clear_ineffective(case: Case) -> Iterator[Finding]:
    """An LPI was delivered after CLEAR had removed its pending state, without a new injection.

    ## What it finds
    A pending fill after CLEAR of the LPI's event, with no MSI, INT or pending table between. Either the LPI was in a list
    register when CLEAR came, and the vCPU brought it back still pending; or it was only queued, and pending_latch was
    not cleared.

    ## Why it matters
    The guest has just withdrawn the interrupt, and gets it all the same.

    ## Where it comes from
    KVM's CLEAR sets pending_latch to false and looks at no list register: a copy there is delivered, or latched again by
    the vCPU's next fold. That is a known limit. It also does so without irq_lock: a fold or a fill at that moment can undo
    it. If the LPI was in no list register and nothing ran at that moment, CLEAR was not carried out.

    ## When it is wrong
    An injection that was under way counts as new, also if CLEAR should have removed it. Fills near lost records are left
    out.

    ## What to do
    If the mechanism is the list register, nothing. If the latch survived, look at vgic_its_cmd_handle_clear: was the
    right event found?
    """
    rows = case.history.cleared
    if rows.is_empty():
        return
    rows = rows.select(*LPI, "seq", "time_ns")
    rows = rows.with_columns(settled=case.ends_of(rows["seq"])).sort("seq")
    rows = after(with_latch(case, rows), sources(case), LPI, sourced="seq")
    fills = case.observations.fills
    rows = next_fill(rows.with_columns(command="seq", seq=pl.col("settled").fill_null(NEVER)), fills)
    rows = rows.with_columns(seq="command").sort("seq")
    in_register = (
        pl.col("held_state").is_in(STILL_PENDING) & (pl.col("held_until") < pl.col("fill"))
    ).fill_null(value=False)
    queued = (pl.col("latched") & pl.col("held").is_null()).fill_null(value=False)
    rows = rows.with_columns(in_register=in_register).filter(
        (in_register | queued) & (pl.col("fill") < pl.col("sourced").fill_null(NEVER))
    )
    for row in case.without_lost(rows, "time_ns", "fill_ns").iter_rows(named=True):
        one = pl.DataFrame([row], schema=rows.schema)
        held = row["in_register"]
        where = f"in a list register of vCPU {row['held_vcpu']}" if held else "queued"
        why = (
            "its next fold latched it again"
            if held
            else "in no list register, so that CLEAR had to remove its pending state"
        )
        yield case.finding(
            f"LPI {row['intid']} was {where} when {case.command_text(row['seq'])} at {seconds(row['time_ns'])} cleared it "
            f"({why}); it was filled on vCPU {row['fill_vcpu']} at {seconds(row['fill_ns'])}, {delivery(row)}, without a new "
            "MSI.",
            mechanism="in a list register, which CLEAR does not look at"
            if held
            else "pending_latch survived CLEAR",
            suspect=("vgic_v3_fold_lr_state",) if held else ("vgic_its_cmd_handle_clear",),
            vcpus=(row["fill_vcpu"],),
            blames=(row["seq"],),
            **case.about(one, end_ns=row["fill_ns"]),
            seqs=first_some(
                [
                    row["latched_seq"],
                    row["held"],
                    row["seq"],
                    row["held_until"] if held else None,
                    row["fill"],
                ]
            ),
        )
