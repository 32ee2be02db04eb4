"""ITS306: pending when its event was discarded, and delivered all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.findings import Finding, Kind, Severity
from itstrace.observe.joins import after, before
from itstrace.rules._pending import STILL_PENDING, delivery, next_fill, sources, unmapped, with_latch
from itstrace.rules.case import LPI, NEVER, Case, first_some
from itstrace.rules.registry import rule
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator


@rule(
    "ITS306",
    kind=Kind.LIFE,
    severity=Severity.NOTE,
    claim="a pending interrupt outlived its DISCARD",
    needs=("COMMANDS", "QUEUEINGS", "LIST_REGISTERS"),
    guest_sees="one more interrupt from an event that it had unmapped",
)
def pending_survived_discard(case: Case) -> Iterator[Finding]:
    """An LPI that was pending when its event was unmapped was delivered afterwards.

    ## What it finds
    An LPI that was queued, or pending in a list register, when DISCARD or MAPD took its event away, and that was filled
    into a list register after that, with no new MSI and no new mapping. If the LPI was mapped again before, the pending
    state came back with the new mapping, and that is told.

    ## Why it matters
    DISCARD removes the pending state on hardware. A driver that masks, discards and frees its interrupt can be called once
    more; if the LPI was given to another device meanwhile, that one is.

    ## Where it comes from
    KVM does not touch pending_latch when it frees an event; an LPI that is on an ap_list lives on until it is taken. It is
    meant so.

    ## When it is wrong
    Not where the whole of it was recorded; fills near lost records are left out.

    ## What to do
    In the guest: let the device stop raising the interrupt, and wait for its handler, before DISCARD.
    """
    rows = unmapped(case).drop_nulls("intid")
    mappings = case.history.mappings.drop_nulls("intid")
    rows = before(
        rows.with_columns(seq=pl.col("seq") + 1), _mapped_by(mappings), LPI, others="count"
    ).with_columns(seq=pl.col("seq") - 1)
    # An LPI that another event maps as well has its own right to come.
    rows = rows.filter(pl.col("others").fill_null(0) <= 0)
    rows = with_latch(case, rows)
    rows = after(rows, sources(case), LPI, sourced="seq")
    begins = mappings.filter(pl.col("from_seq").is_not_null()).select(*LPI, seq="from_seq")
    rows = after(rows, begins, LPI, mapped="seq")
    # What matters is what was filled when the command had taken effect.
    rows = next_fill(rows.with_columns(command="seq", seq=pl.col("settled")), case.observations.fills)
    rows = rows.with_columns(seq="command").sort("seq")
    given_back = pl.col("held_state").is_in(STILL_PENDING) & (pl.col("held_until") < pl.col("fill"))
    was = (pl.col("latched") & pl.col("held").is_null()).fill_null(value=False) | given_back.fill_null(
        value=False
    )
    rows = rows.filter(was & (pl.col("fill") < pl.col("sourced").fill_null(NEVER)))
    for row in case.without_lost(rows, "time_ns", "fill_ns").iter_rows(named=True):
        one = pl.DataFrame([row], schema=rows.schema)
        again = row["mapped"] is not None and row["mapped"] < row["fill"]
        where = "queued" if row["held"] is None else f"in a list register of vCPU {row['held_vcpu']}"
        came = (
            f"with the mapping of {case.command_text(row['mapped'])} it came back, and was filled on"
            if again
            else "it was filled on"
        )
        yield case.finding(
            f"LPI {row['intid']} was {where} when {case.command_text(row['seq'])} at {seconds(row['time_ns'])} unmapped its "
            f"event; {came} vCPU {row['fill_vcpu']} at {seconds(row['fill_ns'])}, {delivery(row)}, without a new MSI.",
            mechanism="brought back by a new mapping" if again else "pending state outlived its event",
            vcpus=(row["fill_vcpu"],),
            blames=(row["seq"],),
            **case.about(one, end_ns=row["fill_ns"]),
            seqs=first_some(
                [row["latched_seq"], row["held"], row["seq"], row["mapped"] if again else None, row["fill"]]
            ),
        )


def _mapped_by(mappings: pl.DataFrame) -> pl.DataFrame:
    """How many events map each LPI from a record on. Shape: vm, intid, seq, count; in order of seq."""
    begins = mappings.select(*LPI, seq=pl.col("from_seq").fill_null(0), step=pl.lit(1))
    ends = mappings.filter(pl.col("to_seq").is_not_null()).select(*LPI, seq="to_seq", step=pl.lit(-1))
    steps = pl.concat([begins, ends]).group_by(*LPI, "seq").agg(pl.col("step").sum()).sort("seq")
    return steps.with_columns(count=pl.col("step").cum_sum().over(LPI))
