"""Raw probe frames out of a capture's blocks: only the events that a probe names, only the fields its columns ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from itstrace.observe.catalogue import PROBES, Probe
from itstrace.observe.matching import BUILT_IN, Catalogue, How, Match, Source, best_first
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
    #: The event's field behind each (probe, column); a column that is always the same has none.
    fields: dict[tuple[str, str], str] = field(default_factory=dict)
    #: By what the event of each probe was found.
    found_by: dict[str, How] = field(default_factory=dict)
    #: What the user's file asks for and the capture does not give.
    remarks: list[str] = field(default_factory=list)
    #: The event types of the capture, by full name.
    formats: Mapping[str, EventFormat] = field(default_factory=dict)

    def __getitem__(self, probe: str) -> pl.DataFrame:
        return self.frames[probe]

    def has(self, probe: str) -> bool:
        """Whether the capture could have recorded the probe (not: whether it fired)."""
        return probe in self.events

    def fired(self, *probes: str) -> bool:
        """Whether each of them was recorded at least once."""
        return all(self.frames[probe].height for probe in probes)

    def gives(self, probe: str, column: str) -> bool:
        """Whether the capture's definition of the probe gives this column."""
        return probe in self.events and column not in self.absent[probe]


def _select(match: Match, fmt: EventFormat) -> list[pl.Expr]:
    """Expressions that make a probe's columns of an event's frame."""
    exprs: list[pl.Expr] = [pl.col(name) for name in HEAD]
    for column in match.probe.columns:
        source = match.sources.get(column.name)
        if source is None or source.field is None:
            value = None if source is None else source.constant
            exprs.append(pl.lit(value, dtype=column.dtype).alias(column.name))
        else:
            have = _dtype(fmt, source.field)
            value_of = _value(pl.col(column_name(source.field)), have, source)
            if isinstance(have, (pl.Array, pl.List)) and isinstance(have.inner, pl.DataType):
                have = have.inner
            exprs.append(_cast(value_of, have, column.dtype).alias(column.name))
    return exprs


def _value(expr: pl.Expr, have: pl.DataType, source: Source) -> pl.Expr:
    """The field, or the element of it that is meant; a list too short for it has none."""
    if source.index is None:
        return expr
    if isinstance(have, pl.Array):
        return expr.arr.get(source.index)
    return expr.list.get(source.index, null_on_oob=True)


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
    "guest_read_begin": pl.col("len") == 1,
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
        # In one piece, for numpy sees it without a copy then.
        return pl.concat(rows, rechunk=True) if rows else None

    def _work(self) -> None:
        query = pl.concat(self._fresh).lazy().select(self._select).filter(self._keep)
        self._done.append(query.collect())
        self._fresh, self._rows = [], 0


def collect(capture: Capture, catalogue: Catalogue = BUILT_IN) -> Raw:
    """Read a capture once and keep what the probes ask for.

    Raises: whatever the reader raises for a file that cannot be read at all.
    """
    heaps: dict[tuple[str, str], _Heap] = {}
    by_event: dict[str, list[_Heap]] = {}
    asked: dict[str, list[Match]] = {}

    def choose(event: EventFormat) -> tuple[EventField, ...] | None:
        matches = asked[event.full_name] = catalogue.matches(event)
        if not matches:
            return None
        for match in matches:
            heap = heaps[match.probe.name, match.event] = _Heap(_select(match, event), _kept(match.probe))
            by_event.setdefault(match.event, []).append(heap)
        needed = {source.field for match in matches for source in match.sources.values()}
        return tuple(field for field in event.fields if field.name in needed)

    for block in capture.blocks(choose):
        for full_name, frame in block.items():
            if frame.height:
                for heap in by_event[full_name]:
                    heap.add(frame)
    frames: dict[str, pl.DataFrame] = {}
    raw = Raw(frames, formats=capture.formats, remarks=catalogue.remarks(capture.formats))
    # A reader of text learns of fields while it reads: what counts is what an event had when it was asked for.
    for event in capture.formats.values():
        if event.full_name not in asked:
            choose(event)
    for name, matches in best_first(match for several in asked.values() for match in several).items():
        parts = [heaps[name, match.event].take() for match in matches]
        # Of several events for one probe the first that fired serves; they record the same thing.
        fired = next((number for number, part in enumerate(parts) if part is not None), 0)
        match, rows = matches[fired], parts[fired]
        if rows is not None:
            frames[name] = rows
        raw.events[name], raw.found_by[name] = match.event, match.how
        raw.absent[name] = frozenset(c.name for c in match.probe.columns if c.name not in match.sources)
        raw.fields |= {
            (name, column): str(source)
            for column, source in match.sources.items()
            if source.field is not None
        }
    for name, probe in PROBES.items():
        if name not in frames:
            frames[name] = pl.DataFrame(schema=HEAD | {c.name: c.dtype for c in probe.columns})
    return raw
