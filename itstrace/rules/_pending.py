"""What made LPIs pending, what took them out of the tables, and where they were held: shared by ITS305 to ITS312."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from itstrace.observe.joins import after, before
from itstrace.rules.case import EVENT, LPI, NEVER, once

if TYPE_CHECKING:
    from itstrace.rules.case import Case

#: ICH_LR<n>_EL2.State as folds find it: pending, or pending and active; active, or pending and active.
#: Spec: IHI 0069H, ICH_LR<n>_EL2
STILL_PENDING, STILL_ACTIVE = (1, 3), (2, 3)


@once
def unmapped(case: Case) -> pl.DataFrame:
    """Events that DISCARD or MAPD took out of the tables.

    Shape: vm, its, device_id, event_id, intid, seq and time_ns (of the command), settled (by then it had surely taken
        effect); in order of seq. A mapping that was only assumed has its `assumed`, and may lack its intid.
    """
    rows = case.history.mappings.filter(pl.col("ended_by").is_not_null())
    # What a command changed goes on at once, and was not unmapped.
    goes_on = case.history.mappings.filter(pl.col("from_seq").is_not_null())
    rows = rows.join(goes_on.select(*EVENT, to_seq="from_seq"), on=[*EVENT, "to_seq"], how="anti")
    rows = rows.with_columns(settled=case.ends_of(rows["ended_by"]).fill_null(NEVER))
    return rows.select(*EVENT, "intid", "settled", "assumed", seq="ended_by", time_ns="to_ns").sort("seq")


@once
def sources(case: Case) -> pl.DataFrame:
    """Records that made an LPI pending: queueings for an MSI, an INT or something unknown, and pending tables read.

    A configuration that is read again queues what is pending already; a fold gives back what was filled.
    Shape: vm, intid, seq; in order of seq.
    """
    queued = case.observations.queueings.filter(pl.col("pending") & (pl.col("cause") != "inv"))
    read = case.history.pending_bits.filter("latched")
    return pl.concat([queued.select(*LPI, "seq"), read.select(*LPI, "seq")]).sort("seq")


def latched(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Whether each row's LPI was pending in software when its `seq` came.

    Shape: `rows` in order of seq with `latched` (null: nothing seen), `latched_by`, `latched_seq`, `latched_ns`,
        `latched_vcpu`.
    """
    return before(
        rows,
        case.lives.latches,
        LPI,
        latched="latched",
        latched_by="by",
        latched_seq="seq",
        latched_ns="time_ns",
        latched_vcpu="vcpu",
    )


def with_latch(case: Case, rows: pl.DataFrame) -> pl.DataFrame:
    """Whether each row's LPI was pending in software when its `seq` came, and in which fill it was held then.

    Shape: `rows` as `latched` gives them; and of the fill in whose list register it was: `held`, `held_vcpu`, `held_until`,
        `held_state` (null: in none).
    """
    rows = before(
        latched(case, rows),
        case.observations.fills,
        LPI,
        held="seq",
        held_vcpu="vcpu",
        held_until="end_seq",
        held_state="state",
    )
    holds = pl.col("held").is_not_null() & (pl.col("held_until").fill_null(NEVER) > pl.col("seq"))
    columns = ("held", "held_vcpu", "held_until", "held_state")
    return rows.with_columns(pl.when(holds).then(pl.col(c)).alias(c) for c in columns)


def next_fill(rows: pl.DataFrame, fills: pl.DataFrame) -> pl.DataFrame:
    """The first pending fill of each row's LPI after its `seq`. Adds fill, fill_ns, fill_vcpu, fill_end, fill_state."""
    return after(
        rows,
        fills.filter("pending"),
        LPI,
        fill="seq",
        fill_ns="time_ns",
        fill_vcpu="vcpu",
        fill_end="end_seq",
        fill_state="state",
    )


def delivery(row: dict[str, Any]) -> str:
    """What became of a fill, in words."""
    if row["fill_state"] is None:
        return "what became of it there was not recorded"
    return "which found it still pending" if row["fill_state"] in STILL_PENDING else "which took it"
