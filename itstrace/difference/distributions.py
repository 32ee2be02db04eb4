"""How the waits of a stage are distributed, in both captures: what a drawing of them needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from itstrace.difference.traffic import STAGES, delivered

if TYPE_CHECKING:
    from collections.abc import Sequence

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
_KEYS: Final = ["vm", "intid"]


def distributions(a: Analysis, b: Analysis, vms: dict[int, int], latencies: pl.DataFrame) -> pl.DataFrame:
    """Count the waits by length; of LPIs only where `latencies` (LATENCIES) has a shift. Shape: DISTRIBUTIONS."""
    shifted = latencies.filter(pl.col("intid").is_not_null() & pl.col("measure").is_not_null())
    chosen = shifted.select(_KEYS).unique()
    no_lpi = [pl.lit(None, DISTRIBUTIONS[key]).alias(key) for key in _KEYS]
    whole = [delivered(each).with_columns(no_lpi) for each in (a, b)]
    matched = [
        lives.join(chosen, on=_KEYS, how="semi")
        for lives in (delivered(a, {vm: vm for vm in vms}), delivered(b, vms))
    ]
    parts = [_counted(sides, begin, end) for begin, end in STAGES for sides in (whole, matched)]
    return pl.concat(parts).select(DISTRIBUTIONS.names()).cast(DISTRIBUTIONS)


def _counted(sides: Sequence[pl.DataFrame], begin: str, end: str) -> pl.DataFrame:
    """How many waits of both sides are in each bin, by VM and LPI, by length."""
    keys = [*_KEYS, "at"]
    count_a, count_b = (
        _binned(lives, begin, end).group_by(keys).agg(pl.len().alias(f"count_{side}"))
        for lives, side in zip(sides, "ab", strict=True)
    )
    both = count_a.join(count_b, on=keys, how="full", coalesce=True, nulls_equal=True).sort(keys)
    return both.with_columns(
        pl.col("count_a", "count_b").fill_null(0),
        begin=pl.lit(begin),
        end=pl.lit(end),
        low_ns=_edge(pl.col("at")),
        high_ns=_edge(pl.col("at") + 1),
    )


def _binned(lives: pl.DataFrame, begin: str, end: str) -> pl.DataFrame:
    """The bin of each wait. Shape: vm, intid, at."""
    span = (pl.col(end) - pl.col(begin)).clip(1).cast(pl.Float64)
    return lives.select(*_KEYS, at=(span.log10() * _PER_DECADE + 1e-9).floor().cast(pl.Int64)).drop_nulls(
        "at"
    )


def _edge(at: pl.Expr) -> pl.Expr:
    """The shortest wait, in whole ns, of a bin: floating point must not put a power of ten into the one before."""
    return (pl.lit(10.0).pow(at / _PER_DECADE) * (1 - 1e-12)).ceil().cast(pl.Int64)
