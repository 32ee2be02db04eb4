"""How the waits of a stage are distributed, in both captures: what a drawing of them needs."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.difference.traffic import STAGES, delivered, spans

if TYPE_CHECKING:
    from itstrace.analysis import Analysis

#: One row per stage and bin of waits that one capture at least has: `low_ns` is within, `high_ns` is not. Of all VMs, or
#: of one LPI whose latency has shifted. What took no time at all is in the first bin.
DISTRIBUTIONS = pl.Schema(
    {
        "vm": pl.UInt16,
        "intid": pl.UInt32,
        "begin": pl.String,
        "end": pl.String,
        "low_ns": pl.Int64,
        "high_ns": pl.Int64,
        "count_a": pl.UInt64,
        "count_b": pl.UInt64,
    }
)
#: Bins are of one width in a logarithmic scale.
_PER_DECADE: Final = 8
_NONE: Final = pl.Series("span", [], pl.Int64)


def distributions(a: Analysis, b: Analysis, vms: dict[int, int], latencies: pl.DataFrame) -> pl.DataFrame:
    """Count the waits by length; of LPIs only where `latencies` (LATENCIES) has a shift. Shape: DISTRIBUTIONS."""
    shifted = latencies.filter(pl.col("intid").is_not_null() & pl.col("measure").is_not_null())
    chosen = {row[:2]: True for row in shifted.select("vm", "intid").iter_rows()}
    whole = [delivered(each) for each in (a, b)]
    matched = [delivered(a, {vm: vm for vm in vms}), delivered(b, vms)]
    rows = []
    for begin, end in STAGES:
        for lives, by_lpi in ((whole, False), (matched, True)):
            if by_lpi and not chosen:
                continue
            sides = [spans(each, begin, end, by_lpi=by_lpi) for each in lives]
            for lpi in sorted(chosen) if by_lpi else [(None, None)]:
                counts = [_binned(side.get(lpi, _NONE)) for side in sides]
                rows += [
                    (*lpi, begin, end, _edge(at), _edge(at + 1), counts[0].get(at, 0), counts[1].get(at, 0))
                    for at in sorted(counts[0].keys() | counts[1].keys())
                ]
    return pl.DataFrame(rows, schema=DISTRIBUTIONS, orient="row")


def _edge(at: int) -> int:
    """The shortest wait, in whole ns, of a bin: floating point must not put a power of ten into the one before."""
    return ceil(10 ** (at / _PER_DECADE) * (1 - 1e-12))


def _binned(lengths: pl.Series) -> dict[int, int]:
    """Number of waits by bin."""
    at = (lengths.clip(1).cast(pl.Float64).log10() * _PER_DECADE + 1e-9).floor().cast(pl.Int64)
    return dict(at.value_counts().iter_rows())
