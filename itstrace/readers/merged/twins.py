"""Whether two captures hold the same records: told by a sample of the times of the events that both have."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Final

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from itstrace.readers.base import Capture

#: Two recorders stamp one record when each has its turn: microseconds apart, tens of them on an emulated machine.
_APART_NS: Final = 100_000
#: Rows of each part that are looked at.
_SAMPLE_ROWS: Final = 1 << 16
#: What a record is known by apart from its time.
_KEY = ["event", "cpu", "pid"]


def twins(parts: Sequence[Capture], names: Sequence[dict[str, str]], shared: set[str]) -> list[int]:
    """The first of the parts that have the same records, for each part; itself where it has records of its own.

    `names` leads from each part's names of events to those of the whole, `shared` are those that several have.
    """
    firsts = list(range(len(parts)))
    for one, other in combinations(range(len(parts)), 2):
        if firsts[one] == firsts[other]:
            continue
        spans = [parts[i].span() for i in (one, other)]
        starts, ends = zip(*spans, strict=True)
        if None in starts or max(starts) >= min(ends):
            continue
        samples = [_sample(parts[i], names[i], shared, max(starts)) for i in (one, other)]
        if _same(*samples):
            joined = {firsts[one], firsts[other]}
            firsts = [min(joined) if first in joined else first for first in firsts]
    return firsts


def bare(part: Capture, names: dict[str, str], shared: set[str]) -> Iterator[tuple[str, pl.DataFrame]]:
    """Frames of the shared events, without their fields, under the names of the whole."""
    for block in part.blocks(lambda event: () if names.get(event.full_name) in shared else None):
        for own_name, frame in block.items():
            if frame.height:
                yield names[own_name], frame


def _sample(part: Capture, names: dict[str, str], shared: set[str], from_ns: int) -> pl.DataFrame:
    """The first records from a time on."""
    frames: list[pl.DataFrame] = []
    rows = 0
    for full_name, frame in bare(part, names, shared):
        frames.append(
            frame.filter(pl.col("time_ns") >= from_ns).select(
                pl.lit(full_name).alias("event"), "cpu", "pid", "time_ns"
            )
        )
        rows += frames[-1].height
        if rows >= 4 * _SAMPLE_ROWS:  # the frames of one block come one event after the other
            break
    return pl.concat(frames).sort("time_ns").head(_SAMPLE_ROWS) if frames else pl.DataFrame()


def _same(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    """Whether most records of the smaller sample stand beside one of the other.

    Beside it: closer by half than to the next of its own kind in its own capture. Of two captures that have nothing in
    common but the hour a third does so by chance, of twins nearly all.
    """
    if one.is_empty() or other.is_empty():
        return False
    until_ns = min(one.item(-1, "time_ns"), other.item(-1, "time_ns"))
    few, many = sorted((sample.filter(pl.col("time_ns") <= until_ns) for sample in (one, other)), key=len)
    if few.is_empty():
        return False
    before = (pl.col("time_ns") - pl.col("time_ns").shift(1)).over(_KEY)
    behind = (pl.col("time_ns").shift(-1) - pl.col("time_ns")).over(_KEY)
    near = few.with_columns(own=pl.min_horizontal(before, behind)).join_asof(
        many.with_columns(twin_ns=pl.col("time_ns")),
        on="time_ns",
        by=_KEY,
        strategy="nearest",
        tolerance=_APART_NS,
        check_sortedness=False,
    )
    apart = (pl.col("twin_ns") - pl.col("time_ns")).abs()
    beside = (apart == 0) | (2 * apart < pl.col("own")) | (apart.is_not_null() & pl.col("own").is_null())
    return 2 * int(near.select(beside.fill_null(value=False).sum()).item()) > few.height
