"""A QEMU log as a `Capture`: its trace events chunk by chunk, in the order of the log."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from itstrace.errors import Damage, UnknownFormatError
from itstrace.readers.base import (
    Block,
    CaptureInfo,
    EventField,
    EventFormat,
    Selection,
    Wanted,
    column_name,
    selection,
)
from itstrace.readers.qemulog.events import FORMATS, ITS_EVENT, event_format, pattern, word_places
from itstrace.readers.qemulog.lines import chunks, events_of, first_event, is_stamped
from itstrace.readers.tally import Reading, ReadThrough
from itstrace.schemas import COUNTS, GAPS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from itstrace.readers.source import Source

#: QEMU has some thousand trace events; a log that names more was not written by it.
_MAX_EVENTS: Final = 10_000
_DAMAGE_KEPT: Final = 100
_SHOWN_CHARS: Final = 60
#: Threads stamp their lines before they may write them; a clock that runs back further was set.
_LATE_NS: Final = 1_000_000_000
#: A log without stamps: a line is a microsecond, so that times print as line numbers.
_LINE_NS: Final = 1_000


@dataclass(slots=True)
class _Tally(Reading):
    """What one reading has met so far."""

    most_damage: int = _DAMAGE_KEPT
    counts: dict[str, int] = field(default_factory=dict)
    lines: int = 0
    rows: int = 0


class QemuLog(ReadThrough[_Tally]):
    """A log of `qemu-system-aarch64 -trace "gicv3_its_*"`, with time stamps (-msg timestamp=on) or without.

    Lines that are no trace event are passed over: QEMU prints its monitor and its guest's console into the same
    file. The order is that of the log: QEMU's ITS works under one lock, so that its lines stand in the order of what
    they tell. There is no CPU: it is 0 throughout.
    """

    @classmethod
    def open(cls, source: Source) -> QemuLog:
        """Open a log.

        Raises: UnknownFormatError where it has no trace event near its beginning.
        """
        at = first_event(source.data)
        if at is None:
            raise UnknownFormatError(source.path, "has no trace event of QEMU", advice=RECORD)
        return cls(source, stamped=is_stamped(source.data, at))

    def __init__(self, source: Source, *, stamped: bool) -> None:
        self._source = source
        self._stamped = stamped
        self._formats: dict[str, EventFormat] = {}
        self._info = CaptureInfo(
            path=source.path,
            format="QEMU log",
            size_bytes=source.size_bytes,
            clock="wall" if stamped else "none: a line counts as a microsecond",
            model="qemu",
        )

    @property
    def info(self) -> CaptureInfo:
        """What the capture says about itself."""
        return self._info

    @property
    def formats(self) -> Mapping[str, EventFormat]:
        """The trace events that the log holds, by full name."""
        counts = self._complete().counts
        return {name: event for name, event in self._formats.items() if counts.get(name)}

    @property
    def comms(self) -> Mapping[int, str]:
        """Nothing: a log names no task."""
        return {}

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def counts(self) -> pl.DataFrame:
        """Records per event. Shape: rows of COUNTS, all on CPU 0."""
        rows = [(name, 0, count) for name, count in sorted(self._complete().counts.items()) if count]
        return pl.DataFrame(rows, schema=COUNTS, orient="row")

    def gaps(self) -> pl.DataFrame:
        """Nothing: QEMU waits for its log, and loses no line. Shape: rows of GAPS."""
        return pl.DataFrame(schema=GAPS)

    def damage(self) -> list[Damage]:
        """Lines that begin like an event of the ITS and do not go on like one, and clocks that were set back."""
        return [*self._source.damage, *self._complete().all_damage()]

    def blocks(self, wanted: Wanted) -> Iterator[Block]:
        """Stream the events asked for, a chunk of the log at a time.

        Raises: UsageError where an event has no operand of a name asked for.
        """
        choose = selection(wanted, self._source.path)
        chosen: dict[str, tuple[EventField, ...] | None] = {}
        tally = _Tally()
        for offset_bytes, chunk in chunks(self._source.data):
            rows, ended = events_of(offset_bytes, chunk, tally.lines + 1)
            rows = self._timed(rows, tally)
            tally.lines += ended
            tally.rows += rows.height
            block: Block = {}
            for (name,), mine in rows.partition_by("name", as_dict=True, maintain_order=True).items():
                event = self._event(str(name), chosen, choose)
                if event is None:
                    continue
                fields = chosen[event.full_name]
                frame = _decoded(event, mine, fields, tally)
                tally.counts[event.full_name] = tally.counts.get(event.full_name, 0) + frame.height
                if fields is not None:
                    block[event.full_name] = frame
            if block:
                yield block
        self._tally = tally

    def _event(
        self, name: str, chosen: dict[str, tuple[EventField, ...] | None], choose: Selection
    ) -> EventFormat | None:
        """The event type of a name, met before or now for the first time; None beyond all measure."""
        event = event_format(len(self._formats) + 1, name)
        known = self._formats.get(event.full_name)
        if known is None and len(self._formats) >= _MAX_EVENTS:
            return None
        event = self._formats.setdefault(event.full_name, event)
        if event.full_name not in chosen:
            chosen[event.full_name] = choose(event)
        return event

    def _timed(self, rows: pl.DataFrame, tally: _Tally) -> pl.DataFrame:
        """Give every row its seq and a time that never falls; a line without a stamp has that of the one before."""
        if rows.is_empty():
            return rows
        rows = rows.with_columns(seq=pl.lit(np.arange(tally.rows, tally.rows + rows.height, dtype=np.uint64)))
        if not self._stamped:
            rows = rows.with_columns(time_ns=pl.col("line") * _LINE_NS)
        else:
            told = rows["time_ns"].fill_null(strategy="forward")
            last = tally.last_ns if tally.last_ns is not None else int(told.drop_nulls().head(1).sum())
            risen = told.fill_null(last).cum_max().clip(lower_bound=last)
            back = (risen - told).fill_null(0)
            at = back.arg_max()
            worst = 0 if at is None else int(back[at])
            if at is not None and worst > _LATE_NS:
                line, offset_bytes = rows.select("line", "offset_bytes").row(at)
                tally.bad(
                    int(offset_bytes),
                    None,
                    f"line {line}: the clock runs back by {worst / 1e9:.1f} s; times stand still until it catches up",
                )
            rows = rows.with_columns(time_ns=risen)
        if tally.first_ns is None:
            tally.first_ns = int(rows["time_ns"][0])
        tally.last_ns = int(rows["time_ns"][-1])
        return rows


#: How to record one.
RECORD: Final = 'record with: qemu-system-aarch64 ... -trace "gicv3_its_*" -msg timestamp=on -D its.log'


def _decoded(
    event: EventFormat, rows: pl.DataFrame, fields: tuple[EventField, ...] | None, tally: _Tally
) -> pl.DataFrame:
    """The operands of one event's lines. Lines that QEMU's format does not print are damage, and left out."""
    head = [pl.col("seq"), pl.col("time_ns"), pl.lit(0, pl.UInt16).alias("cpu"), pl.col("pid")]
    name = event.name.removeprefix(ITS_EVENT)
    if name == event.name or name not in FORMATS:
        return rows.select(*head, *(column_name(each.name) for each in fields or ()))
    whole = rows["text"].str.contains(pattern(name))
    if not whole.all():
        torn = rows.filter(~whole).select("line", "offset_bytes", "text")
        for line, offset_bytes, text in torn.head(_DAMAGE_KEPT).iter_rows():
            tally.bad(
                offset_bytes, None, f"line {line}: not the text of {event.name}: {text[:_SHOWN_CHARS]!r}"
            )
        tally.more_damage += max(0, torn.height - _DAMAGE_KEPT)
        rows = rows.filter(whole)
    if not fields:
        return rows.select(head)
    places = word_places(name)
    rows = rows.with_columns(_words=pl.col("text").str.split_exact(" ", max(places.values())))
    return rows.select(
        *head,
        *(
            _number(pl.col("_words").struct.field(f"field_{places[each.name]}")).alias(column_name(each.name))
            for each in fields
        ),
    )


def _number(text: pl.Expr) -> pl.Expr:
    """A number as it is printed: hex with 0x, else decimal; a colon may follow."""
    text = text.str.strip_suffix(":")
    hexed = text.str.strip_prefix("0x").str.to_integer(base=16, dtype=pl.UInt64, strict=False)
    return pl.when(text.str.starts_with("0x")).then(hexed).otherwise(text.cast(pl.UInt64, strict=False))
