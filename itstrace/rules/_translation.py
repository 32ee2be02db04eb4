"""MSIs whose LPI is not the one that the tables held: shared by ITS201 (through the cache) and ITS203 (without it)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from itstrace.observe.joins import before
from itstrace.rules.case import EVENT

if TYPE_CHECKING:
    from itstrace.rules.case import Case


def mismatches(case: Case, *, cached: bool) -> pl.DataFrame:
    """Injections that KVM took and resolved to what no table held, at any moment of the injection.

    Left out: events that the history knows nothing of, where they may have been mapped before the capture, entries
    that are only assumed, and injections near lost records or commands.
    Shape: rows of INJECTIONS with `expected` (the LPI that the tables held; null: unmapped), `gone_by` (what unmapped
        it), `taken_down` (the command that ended the event's mapping to the LPI that came; null: it never mapped
        that LPI, or no command ended it) and `whose` (the event of that device which maps the LPI that came).
    """
    rows = case.observations.injections.filter(
        (pl.col("result") == 0)
        & pl.col("intid").is_not_null()
        & pl.col("its").is_not_null()
        & (pl.col("cached") == cached)
    )
    wrong = case.compare(rows, case.history.mappings, EVENT, "intid", seen="intid", end="end_seq")
    whole = case.observations.itss.select("vm", "its", whole="complete")
    wrong = wrong.join(whole, on=["vm", "its"], how="left", maintain_order="left")
    # Of an ITS that is known from its first command on, an event without any history was never mapped.
    wrong = wrong.filter(
        (pl.col("known") | pl.col("whole").fill_null(value=False)) & ~pl.col("assumed").fill_null(value=False)
    )
    if not wrong.is_empty():
        # A MOVI of an event first seen then: it is mapped, and nobody knows to which LPI.
        wrong = wrong.filter(
            pl.col("expected").is_not_null() | pl.col("gone_by").is_not_null() | ~pl.col("known")
        )
    wrong = case.without_lost_commands(case.without_lost(wrong, "time_ns", "end_ns"), "since_seq")
    return _whence(case, wrong)


def _whence(case: Case, wrong: pl.DataFrame) -> pl.DataFrame:
    """Where the LPI that came is from: the event's own earlier mapping, or another event."""
    ended = case.history.mappings.drop_nulls("to_seq")
    ended = ended.select(*EVENT, "intid", seq="to_seq", by="ended_by")
    wrong = before(wrong, ended, [*EVENT, "intid"], taken_down="by")
    others = case.history.mappings.with_columns(seq=pl.col("from_seq").fill_null(0))
    others = others.select("vm", "its", "device_id", "intid", "seq", "to_seq", other="event_id")
    wrong = before(wrong, others, ["vm", "its", "device_id", "intid"], whose="other", _until="to_seq")
    live = pl.col("_until").is_null() | (pl.col("_until") > pl.col("seq"))
    mine = pl.col("whose") != pl.col("event_id")
    return wrong.with_columns(whose=pl.when(live & mine).then("whose")).drop("_until")
