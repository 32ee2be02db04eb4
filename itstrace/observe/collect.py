"""Raw probe frames out of a capture's blocks: only the events that a probe names, only the fields its columns ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from itstrace.observe.catalogue import PROBES, Probe
from itstrace.readers.base import HEAD, column_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from itstrace.readers.base import Capture, EventField, EventFormat

#: Rows of one event that are worth a query.
_MANY_ROWS = 1 << 18

#: The first register of an ITS. Spec: IHI 0069H, GITS_CTLR.
GITS_CTLR = 0

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
    #: The event types of the capture, by full name.
    formats: Mapping[str, EventFormat] = field(default_factory=dict)

    def __getitem__(self, probe: str) -> pl.DataFrame:
        return self.frames[probe]

    def has(self, probe: str) -> bool:
        """Whether the capture could have recorded the probe (not: whether it fired)."""
        return probe in self.events

    def gives(self, probe: str, column: str) -> bool:
        """Whether the capture's definition of the probe gives this column."""
        return probe in self.events and column not in self.absent[probe]


def feeds(event: EventFormat) -> list[str]:
    """Which probes an event may feed: those that name it, and whose columns it gives as far as they are required.

    An event is known by its full name, or by its bare name in any group (dynamic events may stand in any); text
    may tell no group at all.
    """
    names = {event.full_name, event.name}
    return [
        probe.name
        for probe in PROBES.values()
        if any(_bare(each, event) in names for each in probe.events) and not _lacks(probe, event)
    ]


def _bare(name: str, event: EventFormat) -> str:
    """The name by which a probe knows an event: without its group where the capture does not tell it."""
    return name if event.system else name.rpartition(":")[2]


def find_events(formats: Mapping[str, EventFormat]) -> dict[str, list[str]]:
    """Which events of a capture may feed which probe, the best first."""
    able: dict[str, list[EventFormat]] = {}
    for event in formats.values():
        for probe in feeds(event):
            able.setdefault(probe, []).append(event)
    return {
        name: [
            event.full_name
            for wanted in probe.events
            for event in able[name]
            if _bare(wanted, event) in (event.full_name, event.name)
        ]
        for name, probe in PROBES.items()
        if name in able
    }


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
            exprs.append(
                _cast(pl.col(column_name(source)), _dtype(fmt, source), column.dtype).alias(column.name)
            )
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
    "qemu_read": pl.col("offset") == GITS_CTLR,
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
    heaps: dict[tuple[str, str], _Heap] = {}
    plans: dict[tuple[str, str], tuple[list[pl.Expr], dict[str, str], frozenset[str]]] = {}
    by_event: dict[str, list[_Heap]] = {}

    def choose(event: EventFormat) -> tuple[EventField, ...] | None:
        needed: set[str] = set()
        for name in feeds(event):
            plan = plans[name, event.full_name] = _select(PROBES[name], event)
            heap = heaps[name, event.full_name] = _Heap(plan[0], _kept(PROBES[name]))
            by_event.setdefault(event.full_name, []).append(heap)
            needed.update(plan[1].values())
        if event.full_name not in by_event:
            return None
        return tuple(field for field in event.fields if field.name in needed)

    for block in capture.blocks(choose):
        for full_name, frame in block.items():
            if frame.height:
                for heap in by_event[full_name]:
                    heap.add(frame)
    candidates = [(name, event) for name, events in find_events(capture.formats).items() for event in events]
    parts = {key: heaps[key].take() for key in candidates}
    frames: dict[str, pl.DataFrame] = {}
    events: dict[str, str] = {}
    absent: dict[str, frozenset[str]] = {}
    fields: dict[tuple[str, str], str] = {}
    for name, event in candidates:
        # Of several events for one probe the first that fired serves; they record the same thing.
        if name not in events or (name not in frames and parts[name, event] is not None):
            events[name], absent[name] = event, plans[name, event][2]
            fields.update({(name, column): source for column, source in plans[name, event][1].items()})
            rows = parts.pop((name, event))
            if rows is not None:
                frames[name] = rows
    for name, probe in PROBES.items():
        if name not in frames:
            frames[name] = pl.DataFrame(schema=HEAD | {c.name: c.dtype for c in probe.columns})
    return Raw(frames, events, absent, fields, capture.formats)
