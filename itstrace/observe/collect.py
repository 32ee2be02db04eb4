"""Raw probe frames out of a capture's blocks: only the events that a probe names, only the fields its columns ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from itstrace.observe.catalogue import PROBES, Probe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from itstrace.readers.base import Capture, EventFormat

#: Columns that every raw frame begins with.
HEAD = {"seq": pl.UInt64(), "time_ns": pl.Int64(), "cpu": pl.UInt16(), "pid": pl.Int32()}

#: Rows of one event that are worth a query.
_MANY_ROWS = 1 << 18

#: The first LPI. Spec: IHI 0069H, INTIDs.
FIRST_LPI = 8192


@dataclass(slots=True)
class Raw:
    """Raw frames by probe name; a probe that the capture does not describe has an empty frame."""

    frames: dict[str, pl.DataFrame]
    #: The capture's event (full name) that fed each probe.
    events: dict[str, str] = field(default_factory=dict)
    #: Columns that the capture's definition of the probe does not give: all null in the frame.
    absent: dict[str, frozenset[str]] = field(default_factory=dict)
    #: The event's field behind each (probe, column).
    fields: dict[tuple[str, str], str] = field(default_factory=dict)

    def __getitem__(self, probe: str) -> pl.DataFrame:
        return self.frames[probe]

    def has(self, probe: str) -> bool:
        """Whether the capture could have recorded the probe (not: whether it fired)."""
        return probe in self.events

    def gives(self, probe: str, column: str) -> bool:
        """Whether the capture's definition of the probe gives this column."""
        return probe in self.events and column not in self.absent[probe]


def find_events(formats: Mapping[str, EventFormat]) -> dict[str, list[str]]:
    """Which events of a capture may feed which probe, the best first.

    A probe's event is found by its full name, or by its bare name in any group (dynamic events may stand in
    any), if its definition has the fields that the probe cannot do without.
    """
    by_name: dict[str, list[str]] = {}
    for full in formats:
        by_name.setdefault(full.rpartition(":")[2], []).append(full)
    found: dict[str, list[str]] = {}
    for probe in PROBES.values():
        candidates = [
            full
            for event in probe.events
            for full in ([event] if ":" in event else by_name.get(event, []))
            if full in formats
        ]
        usable = [full for full in candidates if not _lacks(probe, formats[full])]
        if usable:
            found[probe.name] = usable
    return found


def _lacks(probe: Probe, fmt: EventFormat) -> list[str]:
    """Columns that the probe cannot do without, and that an event's definition does not give."""
    names = {f.name for f in fmt.fields}
    return [c.name for c in probe.columns if c.required and names.isdisjoint(c.fields)]


def _select(probe: Probe, fmt: EventFormat) -> tuple[list[pl.Expr], dict[str, str], frozenset[str]]:
    """Expressions that make a probe's columns of an event's frame; the field behind each; the columns that it lacks."""
    names = {f.name for f in fmt.fields}
    exprs: list[pl.Expr] = [pl.col(name) for name in HEAD]
    needed: dict[str, str] = {}
    absent: set[str] = set()
    for column in probe.columns:
        source = next((f for f in column.fields if f in names), None)
        if source is None:
            exprs.append(pl.lit(None, dtype=column.dtype).alias(column.name))
            absent.add(column.name)
        else:
            needed[column.name] = source
            exprs.append(_cast(pl.col(source), _dtype(fmt, source), column.dtype).alias(column.name))
    return exprs, needed, frozenset(absent)


def _dtype(fmt: EventFormat, name: str) -> pl.DataType:
    return next(f.dtype for f in fmt.fields if f.name == name)


def _cast(expr: pl.Expr, have: pl.DataType, want: pl.DataType) -> pl.Expr:
    """Reinterpret an integer of another width or sign as the kernel meant it: -1 printed as 0xffffffff stays -1."""
    if have == want:
        return expr
    if have.is_integer() and want == pl.Int32():
        return (expr.cast(pl.Int64, strict=False, wrap_numerical=True) & 0xFFFFFFFF).cast(
            pl.Int32, strict=False, wrap_numerical=True
        )
    if have.is_integer() and want.is_integer():
        return expr.cast(want, strict=False, wrap_numerical=True)
    return expr.cast(want, strict=False)


#: Rows that no observation needs are dropped block by block: SGIs, PPIs and SPIs queue too, and guest memory
#: is read a lot.
_KEEP: dict[str, pl.Expr] = {
    "queue": pl.col("intid") >= FIRST_LPI,
    "fill": pl.col("intid") >= FIRST_LPI,
    "fill_end": pl.col("intid") >= FIRST_LPI,
    "affinity": pl.col("intid") >= FIRST_LPI,
    "guest_read": pl.col("len").is_in([1, 8, 32]),
}


def _kept(probe: Probe) -> pl.Expr:
    """Which rows of a probe are kept: those that an observation needs, and that have what it cannot do without."""
    whole = [pl.col(column.name).is_not_null() for column in probe.columns if column.required]
    return pl.all_horizontal(_KEEP.get(probe.name, pl.lit(value=True)), *whole)


class _Heap:
    """Frames of one event, made into a probe's rows a good many at a time: a query costs more than its rows."""

    def __init__(self, select: list[pl.Expr], keep: pl.Expr) -> None:
        self._select = select
        self._keep = keep
        self._fresh: list[pl.DataFrame] = []
        self._rows = 0
        self._done: list[pl.DataFrame] = []

    def add(self, frame: pl.DataFrame) -> None:
        """Take one block's frame."""
        self._fresh.append(frame)
        self._rows += frame.height
        if self._rows >= _MANY_ROWS:
            self._work()

    def take(self) -> pl.DataFrame | None:
        """All rows; None where there are none."""
        if self._fresh:
            self._work()
        rows = [frame for frame in self._done if frame.height]
        return pl.concat(rows) if rows else None

    def _work(self) -> None:
        query = pl.concat(self._fresh).lazy().select(self._select).filter(self._keep)
        self._done.append(query.collect())
        self._fresh, self._rows = [], 0


def collect(capture: Capture) -> Raw:
    """Read a capture once and keep what the probes ask for.

    Raises: whatever the reader raises for a file that cannot be read at all.
    """
    candidates = [(name, event) for name, events in find_events(capture.formats).items() for event in events]
    plans = {key: _select(PROBES[key[0]], capture.formats[key[1]]) for key in candidates}
    wanted: dict[str, tuple[str, ...] | None] = {}
    for (_, event), (_, needed, _) in plans.items():
        wanted[event] = tuple(dict.fromkeys((*(wanted.get(event) or ()), *needed.values())))
    heaps = {key: _Heap(plans[key][0], _kept(PROBES[key[0]])) for key in candidates}
    for block in capture.blocks(wanted):
        for key in candidates:
            frame = block.get(key[1])
            if frame is not None and frame.height:
                heaps[key].add(frame)
    parts = {key: heap.take() for key, heap in heaps.items()}
    frames: dict[str, pl.DataFrame] = {}
    events: dict[str, str] = {}
    absent: dict[str, frozenset[str]] = {}
    fields: dict[tuple[str, str], str] = {}
    for name, event in candidates:
        # Of several events for one probe the first that fired serves; they record the same thing.
        if name not in events or (name not in frames and parts[name, event] is not None):
            events[name], absent[name] = event, plans[name, event][2]
            fields.update({(name, column): source for column, source in plans[name, event][1].items()})
            frame = parts.pop((name, event))
            if frame is not None:
                frames[name] = frame
    for name, probe in PROBES.items():
        if name not in frames:
            frames[name] = pl.DataFrame(schema=HEAD | {c.name: c.dtype for c in probe.columns})
    return Raw(frames, events, absent, fields)
