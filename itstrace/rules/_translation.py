"""MSIs whose LPI is not the one that the tables held: shared by ITS201 (through the cache) and ITS203 (without it)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from itstrace.rules.case import Case

KEY = ["vm", "its", "device_id", "event_id"]


def mismatches(case: Case, *, cached: bool) -> pl.DataFrame:
    """Injections that KVM took and resolved to what no table held, at any moment of the injection.

    Left out: events that the history knows nothing of (they were mapped before the capture), entries that are
    only assumed, and injections near lost records or commands.
    Shape: rows of INJECTIONS with `expected` (the LPI that the tables held; null: unmapped) and `gone_by`
    (what unmapped it).
    """
    rows = case.observations.injections.filter(
        (pl.col("result") == 0)
        & pl.col("intid").is_not_null()
        & pl.col("its").is_not_null()
        & (pl.col("cached") == cached)
    )
    wrong = case.compare(rows, case.history.mappings, KEY, "intid", seen="intid", end="end_seq")
    wrong = wrong.filter(pl.col("known") & ~pl.col("assumed").fill_null(value=False))
    if not wrong.is_empty():
        # A MOVI of an event first seen then: it is mapped, and nobody knows to which LPI.
        wrong = wrong.filter(pl.col("expected").is_not_null() | pl.col("gone_by").is_not_null())
    return case.without_lost_commands(case.without_lost(wrong, "time_ns", "end_ns"), "since_seq")
