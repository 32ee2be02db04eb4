"""Perfetto's trace format, written as a stream: tracks, slices, instants, counters, with interned texts.

Theory of operation. A trace is a run of packets. All of ours are of one sequence; texts are interned: numbered, and told in
a packet before the first that uses them. A track's events are written track by track, each slice's end right behind its
begin: readers sort packets by time and keep the order of the file where times are equal, so that a slice that ends where
the next begins never nests into it. Many events of one shape are a frame and are encoded column by column; a few of their
own kind are written one by one.

Source: perfetto, protos/perfetto/trace/trace.proto, Trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from itstrace.report.protobuf import Rows, block, number
from itstrace.report.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import BinaryIO

    import numpy.typing as npt

    from itstrace.report.protobuf import Numbers

# Fields. Source: perfetto, protos/perfetto/trace/trace_packet.proto, TracePacket.
_PACKET: Final = 1  # of Trace
_CLOCK_SNAPSHOT, _TIMESTAMP, _SEQUENCE, _TRACK_EVENT, _INTERNED = 6, 8, 10, 11, 12
_FLAGS, _DEFAULTS, _TRACK_DESCRIPTOR = 13, 59, 60
_CLEARED, _NEEDS_STATE = 1, 2  # SequenceFlags
_DEFAULT_CLOCK: Final = 58  # Source: perfetto, protos/perfetto/trace/trace_packet_defaults.proto.
# Source: perfetto, protos/perfetto/trace/clock_snapshot.proto.
_CLOCKS, _PRIMARY_CLOCK, _CLOCK_ID, _CLOCK_TIME = 1, 2, 1, 2
# Source: perfetto, protos/perfetto/trace/track_event/track_descriptor.proto.
_UUID, _TRACK_NAME, _PARENT, _COUNTER, _ORDERING, _RANK, _DESCRIPTION = 1, 2, 5, 8, 11, 12, 14
_EXPLICIT: Final = 3  # ChildTracksOrdering
_UNIT_NAME: Final = 6  # Source: perfetto, protos/perfetto/trace/track_event/counter_descriptor.proto.
# Source: perfetto, protos/perfetto/trace/track_event/track_event.proto, TrackEvent.
_ARGUMENT, _TYPE, _NAME, _TRACK, _VALUE, _FLOW = 4, 9, 10, 11, 30, 47
_BEGIN, _END, _INSTANT, _COUNT = 1, 2, 3, 4  # Type
# Source: perfetto, protos/perfetto/trace/track_event/debug_annotation.proto.
_KEY, _BOOL, _UINT, _INT, _POINTER, _ARRAY, _TEXT = 1, 2, 3, 4, 7, 12, 17
# Source: perfetto, protos/perfetto/trace/interned_data/interned_data.proto.
_NAMES, _KEYS, _TEXTS = 2, 3, 29

#: Of the clocks that a trace may be of, those that the format has a number for; a capture of any other says nothing of
#: it. Source: perfetto, protos/perfetto/common/builtin_clock.proto.
CLOCKS: Final = {"mono": 3, "mono_raw": 5, "boot": 6}
#: Our one sequence.
_OURS: Final = 1
#: Rows that are encoded at once.
_CHUNK: Final = 1 << 14

#: Columns that say where an event stands; all others of a frame are its arguments.
PLACE: Final = ("_track", "_name", "_begin", "_end", "_flow", "_value")

Value = str | int | bool | list[str] | None


class Hex(int):
    """A number that is shown in hex."""


class _Texts:
    """Texts of one kind by number."""

    def __init__(self, field: int) -> None:
        self._field = field
        self._known: dict[str, int] = {}
        self._fresh: list[tuple[int, str]] = []

    def one(self, text: str) -> int:
        found = self._known.get(text)
        if found is None:
            found = self._known[text] = len(self._known) + 1
            self._fresh.append((found, plain(text)))
        return found

    def all(self, texts: pl.Series) -> npt.NDArray[np.uint64]:
        """Their numbers; 0 for a null."""
        numbers = {text: self.one(text) for text in texts.unique(maintain_order=True).drop_nulls()}
        if not numbers:
            return np.zeros(len(texts), np.uint64)
        return texts.replace_strict(numbers, default=0, return_dtype=pl.UInt64).fill_null(0).to_numpy()

    def told(self) -> bytes:
        """Those that were not told yet."""
        entries = [block(self._field, number(1, place) + block(2, text)) for place, text in self._fresh]
        self._fresh.clear()
        return b"".join(entries)


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of numbers (of texts: theirs), and where it has one; None: everywhere. `label`: the argument's name."""

    values: Numbers
    where: npt.NDArray[np.bool_] | None
    field: int
    label: int

    def part(self, start: int, stop: int) -> _Column:
        """Some rows of it."""
        where = None if self.where is None else self.where[start:stop]
        return _Column(self.values[start:stop], where, self.field, self.label)


class TraceWriter:
    """A trace that is being written. `tracks` and `events`: how many there are; a slice counts as one event."""

    def __init__(self, out: BinaryIO, *, clock: str | None, start_ns: int) -> None:
        self._out = out
        self._names, self._keys, self._texts = _Texts(_NAMES), _Texts(_KEYS), _Texts(_TEXTS)
        self.tracks = self.events = 0
        defaults = b""
        known = CLOCKS.get(clock or "")
        if known is not None:
            # Without a snapshot readers take times as they are and of no clock; with it they know of which.
            at = number(_CLOCK_ID, known) + number(_CLOCK_TIME, start_ns)
            self._packet(block(_CLOCK_SNAPSHOT, block(_CLOCKS, at) + number(_PRIMARY_CLOCK, known)))
            defaults = block(_DEFAULTS, number(_DEFAULT_CLOCK, known))
        self._packet(defaults, flags=_CLEARED)

    def track(
        self,
        name: str,
        parent: int | None = None,
        *,
        rank: int = 0,
        description: str = "",
        unit: str | None = None,
    ) -> int:
        """A new track; `unit`: of numbers. Those of one parent and name are drawn as one, in as many rows as it needs."""
        self.tracks += 1
        content = number(_UUID, self.tracks) + block(_TRACK_NAME, plain(name)) + number(_RANK, rank)
        content += number(_ORDERING, _EXPLICIT)
        if parent is not None:
            content += number(_PARENT, parent)
        if description:
            content += block(_DESCRIPTION, plain(description))
        if unit is not None:
            content += block(_COUNTER, block(_UNIT_NAME, unit))
        self._packet(block(_TRACK_DESCRIPTOR, content))
        return self.tracks

    def slice(self, track: int, begin_ns: int, end_ns: int, name: str, args: Mapping[str, Value]) -> None:
        """One slice."""
        self._event(track, _BEGIN, begin_ns, name, args)
        self._event(track, _END, end_ns, None, {})
        self.events += 1

    def instant(self, track: int, time_ns: int, name: str, args: Mapping[str, Value]) -> None:
        """One instant."""
        self._event(track, _INSTANT, time_ns, name, args)
        self.events += 1

    def slices(self, frame: pl.DataFrame) -> None:
        """A slice for each row (`_track`, `_name`, `_begin`, `_end`, `_flow` or null, then arguments).

        On each track in order of time, and none within another.
        """
        for part in self._parts(frame):
            whole = self._rows(part, _BEGIN)
            event = Rows(whole.height)
            event.number(_TYPE, _END)
            event.number(_TRACK, part["_track"].values)
            end = Rows(whole.height)
            end.message(_PACKET, _timed(part["_end"].values, event, 0))
            whole.then(end)
            self._out.write(whole.encode())

    def instants(self, frame: pl.DataFrame) -> None:
        """An instant for each row; as for slices."""
        for part in self._parts(frame):
            self._out.write(self._rows(part, _INSTANT).encode())

    def values(self, frame: pl.DataFrame) -> None:
        """A value of a counter for each row (`_track`, `_begin`, `_value`)."""
        for part in self._parts(frame):
            times = part["_begin"].values
            event = Rows(len(times))
            event.number(_TYPE, _COUNT)
            event.number(_TRACK, part["_track"].values)
            event.number(_VALUE, part["_value"].values)
            whole = Rows(len(times))
            whole.message(_PACKET, _timed(times, event, 0))
            self._out.write(whole.encode())

    def _parts(self, frame: pl.DataFrame) -> Iterator[dict[str, _Column]]:
        """The frame's columns in parts; its texts are told before."""
        self.events += frame.height
        columns = {
            column.name: self._column(column)
            for column in frame.iter_columns()
            if column.null_count() < max(frame.height, 1)
        }
        self._tell()
        for start in range(0, frame.height, _CHUNK):
            yield {name: column.part(start, start + _CHUNK) for name, column in columns.items()}

    def _column(self, column: pl.Series) -> _Column:
        """A column as numbers. As an argument it has its own name; of a name that ends in `#`, it is shown in hex."""
        where = column.is_not_null().to_numpy() if column.null_count() else None
        label = 0 if column.name in PLACE else self._keys.one(column.name.removesuffix("#"))
        if column.dtype == pl.String:
            texts = self._names if column.name == "_name" else self._texts
            return _Column(texts.all(column), where, _TEXT, label)
        if column.dtype == pl.Boolean:
            return _Column(column.fill_null(value=False).cast(pl.UInt8).to_numpy(), where, _BOOL, label)
        field = (
            _POINTER if column.name.endswith("#") else _UINT if column.dtype.is_unsigned_integer() else _INT
        )
        return _Column(column.fill_null(0).to_numpy(), where, field, label)

    def _rows(self, part: Mapping[str, _Column], kind: int) -> Rows:
        height = len(part["_begin"].values)
        event = Rows(height)
        event.number(_TYPE, kind)
        event.number(_TRACK, part["_track"].values)
        event.number(_NAME, part["_name"].values)
        if "_flow" in part:
            event.fixed64(_FLOW, part["_flow"].values, part["_flow"].where)
        for name, column in part.items():
            if name not in PLACE:
                argument = Rows(height)
                argument.number(_KEY, column.label)
                argument.number(column.field, column.values)
                event.message(_ARGUMENT, argument, column.where)
        whole = Rows(height)
        whole.message(_PACKET, _timed(part["_begin"].values, event, _NEEDS_STATE))
        return whole

    def _event(
        self, track: int, kind: int, time_ns: int, name: str | None, args: Mapping[str, Value]
    ) -> None:
        content = number(_TYPE, kind) + number(_TRACK, track)
        if name is not None:
            content += number(_NAME, self._names.one(name))
        for label, value in args.items():
            if value is not None and value not in ("", []):
                inner = number(_KEY, self._keys.one(label)) + self._value(value)
                content += block(_ARGUMENT, inner)
        self._tell()
        self._packet(number(_TIMESTAMP, time_ns) + block(_TRACK_EVENT, content), flags=_NEEDS_STATE)

    def _value(self, value: Any) -> bytes:
        if isinstance(value, list):
            return b"".join(block(_ARRAY, self._value(each)) for each in value)
        if isinstance(value, str):
            return number(_TEXT, self._texts.one(value))
        return number(
            _BOOL if isinstance(value, bool) else _POINTER if isinstance(value, Hex) else _INT, value
        )

    def _tell(self) -> None:
        """Tell the texts that are new."""
        fresh = self._names.told() + self._keys.told() + self._texts.told()
        if fresh:
            self._packet(block(_INTERNED, fresh), flags=_NEEDS_STATE)

    def _packet(self, content: bytes, *, flags: int = 0) -> None:
        content += number(_SEQUENCE, _OURS)
        if flags:
            content += number(_FLAGS, flags)
        self._out.write(block(_PACKET, content))


def _timed(times: Numbers, event: Rows, flags: int) -> Rows:
    packet = Rows(event.height)
    packet.number(_TIMESTAMP, times)
    packet.number(_SEQUENCE, _OURS)
    if flags:
        packet.number(_FLAGS, flags)
    packet.message(_TRACK_EVENT, event)
    return packet
