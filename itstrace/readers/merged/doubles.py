"""What two recorders wrote down both: the same event, CPU and task at the same time. It must count once.

Two recorders of one event need not have the same records: each may have had its own filter, or both have drained the
same pipe. So a sample tells first, by the times, whether the records of two parts are the same ones (twins.py).

Where they are, the time line is cut where a part begins or ends. Between two cuts, of each event, CPU and task, the
records of the part that has most of them are kept (of the first, where they have as many), those of the others are
left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from itstrace.readers.merged.twins import bare, twins

if TYPE_CHECKING:
    from collections.abc import Sequence

    from itstrace.readers.base import Capture
    from itstrace.readers.merged.events import Events

_KEY = ["stretch", "cpu", "pid"]
_GROUPS = pl.Schema(
    {
        "event": pl.String,
        "part": pl.UInt32,
        "twins": pl.UInt32,  # the first of the parts with the same records
        "stretch": pl.Int64,
        "cpu": pl.UInt16,
        "pid": pl.Int32,
        "records": pl.UInt64,
    }
)
#: So many frames of counts are added up in one go.
_FRAMES = 256


@dataclass(slots=True)
class Doubles:
    """Which records of which part are left out. `groups` has one row per event, part, stretch, CPU and task."""

    cuts: list[int]
    groups: pl.DataFrame

    def drop(self, part: int, full_name: str, frame: pl.DataFrame) -> pl.DataFrame:
        """A part's frame without what another part is taken for."""
        if self.groups.is_empty() or frame.is_empty():
            return frame
        out = self.groups.filter(part=part, event=full_name)
        if out.is_empty():
            return frame
        marked = _with_stretch(frame, self.cuts)
        return marked.join(out, on=_KEY, how="anti", maintain_order="left", nulls_equal=True).drop("stretch")

    def left_out(self) -> pl.DataFrame:
        """How many records of each part, event and CPU are left out."""
        return self.groups.group_by("part", "event", "cpu").agg(pl.col("records").sum())


def find_doubles(parts: Sequence[Capture], events: Events) -> Doubles:
    """Find what was recorded twice, by counting the events that several parts have."""
    spans = [part.span() for part in parts]
    cuts = sorted(
        {at for start, end in spans if start is not None and end is not None for at in (start, end + 1)}
    )
    shared = _shared(parts, events)
    if not shared or not _overlapping(spans):
        return Doubles(cuts, pl.DataFrame(schema=_GROUPS))
    firsts = twins(parts, events.names, shared)
    counted = [
        _count(part, i, firsts[i], names=events.names[i], shared=shared, cuts=cuts)
        for i, part in enumerate(parts)
        if firsts.count(firsts[i]) > 1
    ]
    groups = pl.concat([pl.DataFrame(schema=_GROUPS), *counted])
    best = ["event", "twins", *_KEY]
    ranked = groups.sort([*best, "records", "part"], descending=[False] * 5 + [True, False], nulls_last=True)
    return Doubles(cuts, ranked.filter(~pl.struct(best).is_first_distinct()))


def _shared(parts: Sequence[Capture], events: Events) -> set[str]:
    """Events of which several parts have records on one CPU."""
    having = pl.concat(
        [
            part.counts().filter(pl.col("records") > 0).select(pl.col("event").replace(names), "cpu").unique()
            for part, names in zip(parts, events.names, strict=True)
        ]
    )
    return set(having.filter(pl.struct("event", "cpu").is_duplicated())["event"].to_list())


def _overlapping(spans: Sequence[tuple[int | None, int | None]]) -> bool:
    """Whether two spans have more than an instant in common."""
    known = sorted((start, end) for start, end in spans if start is not None and end is not None)
    reach = None
    for start, end in known:
        if reach is not None and start < reach:
            return True
        reach = end if reach is None else max(reach, end)
    return False


def _count(
    part: Capture, index: int, first: int, *, names: dict[str, str], shared: set[str], cuts: list[int]
) -> pl.DataFrame:
    """Records of the shared events of one part. Shape: rows of _GROUPS."""
    fresh: list[pl.DataFrame] = []
    total = pl.DataFrame(schema=_GROUPS)
    for full_name, frame in bare(part, names, shared):
        counted = _with_stretch(frame, cuts).group_by(_KEY).len("records")
        fresh.append(
            counted.select(
                pl.lit(full_name, pl.String).alias("event"),
                pl.lit(index, pl.UInt32).alias("part"),
                pl.lit(first, pl.UInt32).alias("twins"),
                *_KEY,
                pl.col("records").cast(pl.UInt64),
            )
        )
        if len(fresh) >= _FRAMES:
            total, fresh = _added([total, *fresh]), []
    return _added([total, *fresh])


def _added(frames: list[pl.DataFrame]) -> pl.DataFrame:
    whole = pl.concat(frames)
    return (
        whole.group_by("event", "part", "twins", *_KEY).agg(pl.col("records").sum()).select(_GROUPS.names())
    )


def _with_stretch(frame: pl.DataFrame, cuts: list[int]) -> pl.DataFrame:
    """Number the stretches between cuts."""
    found = np.searchsorted(np.array(cuts, np.int64), frame["time_ns"].to_numpy(), side="right")
    return frame.with_columns(pl.Series("stretch", found, dtype=pl.Int64))
