"""A tracer's text as a `Capture`: lines to events, block by block, in order of time."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from itstrace.errors import CaptureError
from itstrace.readers.base import Block, CaptureInfo, EventField, EventFormat, Selection, Wanted, selection
from itstrace.readers.source import Source, open_source
from itstrace.readers.tally import ReadThrough, gaps_frame
from itstrace.readers.text.chunks import Chunk, chunks
from itstrace.readers.text.heads import Heads, Stamp, find_heads
from itstrace.readers.text.names import Names
from itstrace.readers.text.order import Piece, in_order
from itstrace.readers.text.tally import Tally
from itstrace.readers.text.values import Rows, TextEvent, columns, learn
from itstrace.schemas import COUNTS

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from itstrace.errors import Damage

#: How far into a file its first event may stand: consoles say much before a kernel dumps its trace.
_SEARCHED_CHUNKS = 16
#: What a file says of itself in lines of its own.
_SAYS = {
    "cpus": re.compile(r"^cpus=(\d{1,5})$|#P:(\d{1,5})\b", re.MULTILINE),
    "kernel": re.compile(r"^# os release : (\S+)$", re.MULTILINE),
    "arch": re.compile(r"^# arch : (\S+)$", re.MULTILINE),
    "tracer": re.compile(r"^# tracer: (\S+)$", re.MULTILINE),
    "written": re.compile(r"^# entries-in-buffer/entries-written: (\d+/\d+)", re.MULTILINE),
}
_HEAD_BYTES = 1 << 16


class TextCapture(ReadThrough[Tally]):
    """Text that a tracer printed: tracefs `trace` and `trace_pipe`, `trace-cmd report`, `perf script`."""

    @classmethod
    def open(cls, source: Source | Path | str) -> TextCapture | None:
        """Open a text; None where it has no event's line."""
        opened = source if isinstance(source, Source) else open_source(source)
        stamp = find_stamp(opened.data)
        return None if stamp is None else cls(opened, stamp)

    def __init__(self, source: Source, stamp: Stamp) -> None:
        self._source = source
        self._stamp = stamp
        self._names = Names()
        #: by the number of its name, and by its full name: two names may be of one event
        self._events: dict[int, TextEvent] = {}
        self._formats: dict[str, EventFormat] = {}
        self._info = _describe(source, stamp)
        self._first_notes = len(self._info.notes)

    @property
    def info(self) -> CaptureInfo:
        """What the capture says about itself."""
        return self._info

    @property
    def formats(self) -> Mapping[str, EventFormat]:
        """The event types that were met, by full name; asking before a reading makes one."""
        self._complete()
        return self._formats

    @property
    def comms(self) -> Mapping[int, str]:
        """Task names by pid, as the lines print them."""
        return self._complete().comms

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def counts(self) -> pl.DataFrame:
        """Records per event and CPU. Shape: rows of COUNTS."""
        tally = self._complete()
        rows = [(self._full_name(code), cpu, count) for (code, cpu), count in tally.counts.items()]
        frame = pl.DataFrame(rows, schema=COUNTS, orient="row")
        return frame.group_by("event", "cpu").agg(pl.col("records").sum()).sort("event", "cpu")

    def gaps(self) -> pl.DataFrame:
        """Stretches in which records were lost. Shape: rows of GAPS."""
        tally = self._complete()
        return gaps_frame(tally.gaps, tally.first_ns, tally.last_ns)

    def damage(self) -> list[Damage]:
        """Where the text is cut short or damaged."""
        return [*self._source.damage, *self._complete().all_damage()]

    def blocks(self, wanted: Wanted) -> Iterator[Block]:
        """Stream the events asked for, in order of time. See `Capture.blocks`."""
        choose = selection(wanted, self._source.path)
        tally = Tally()
        asked: dict[str, tuple[EventField, ...] | None] = {}
        pieces = (self._piece(chunk, choose, asked, tally) for chunk in chunks(self._source.data))
        for block in in_order(pieces, tally):
            if block:
                yield block
        tally.finish()
        self._tally = tally
        self._complete_info(tally)

    # -- one chunk -------------------------------------------------------------------------------------------

    def _piece(
        self, chunk: Chunk, choose: Selection, asked: dict[str, tuple[EventField, ...] | None], tally: Tally
    ) -> Piece:
        """The records of a chunk. `asked`: what `choose` said of each event met so far."""
        heads = find_heads(chunk, self._stamp)
        codes = self._names.codes(chunk, heads.name_start, heads.name_end)
        tally.note_lines(heads, codes)
        tally.note_width(chunk, heads, codes)
        tally.note_order(chunk, heads)
        if tally.older_at is not None:
            raise self._several(tally.older_at)
        tally.note_tasks(chunk, heads)
        tally.note_losses(chunk, heads)
        order = np.argsort(codes, kind="stable")
        numbers, begins = np.unique(codes[order], return_index=True)
        frames: Block = {}
        for code, which in zip(numbers.tolist(), np.split(order, begins[1:]), strict=True):
            if code < 0:
                continue
            # What follows the name's colon.
            rows = Rows(chunk, heads.name_end[which] + 1, chunk.ends[heads.line[which]])
            event = self._event(code, rows)
            name = event.format.full_name
            if name not in asked:
                asked[name] = choose(event.format)
            fields = asked[name]
            if fields is None:
                continue
            frame = _frame(heads, which, columns(event, fields, rows))
            tally.note_torn(chunk, [int(heads.line[which[place]]) for place in rows.torn])
            earlier = frames.get(name)
            frames[name] = frame if earlier is None else pl.concat([earlier, frame]).sort("seq")
        named = codes >= 0
        if not named.all():  # ranks are among records alone
            rank = np.cumsum(named) - 1
            frames = {
                name: frame.with_columns(seq=pl.Series(rank[frame["seq"].to_numpy()].astype(np.uint64)))
                for name, frame in frames.items()
            }
        return Piece(heads.time_ns[named], frames)

    def _several(self, line: int) -> CaptureError:
        return CaptureError(
            self._source.path,
            f"holds several recordings: from line {line:,} on, lines are older than those before",
            advice=f"head -n {line - 1} FILE > 1.txt; tail -n +{line} FILE > 2.txt; itstrace analyze 1.txt 2.txt",
        )

    def _event(self, code: int, rows: Rows) -> TextEvent:
        event = self._events.get(code)
        if event is None:
            event = learn(code, self._names.names[code], rows)
            known = next(
                (each for each in self._events.values() if each.format.full_name == event.format.full_name),
                None,
            )
            event = self._events[code] = known or event
            self._formats[event.format.full_name] = event.format
        return event

    def _full_name(self, code: int) -> str:
        event = self._events.get(code)
        return self._names.names[code] if event is None else event.format.full_name

    def _complete_info(self, tally: Tally) -> None:
        """What only a whole reading tells."""
        info = self._info
        if not info.cpus and tally.counts:
            info.cpus = 1 + max(cpu for _, cpu in tally.counts)
        notes = [*info.notes[: self._first_notes], *tally.notes()]
        if tally.digits == 6:
            notes.insert(0, _MICROS)
        info.tells_tasks = tally.no_pid * 2 <= tally.records
        if tally.nameless:
            info.options["other lines"] = f"{tally.nameless:,} of tracers of functions, which are no events"
        plain = _FORMAT.format("ftrace")
        if info.format.startswith(plain) and any(":" in name for name in self._names.names):
            # Only perf prints an event's group before its name.
            info.format = info.format.replace(plain, _FORMAT.format("perf script"), 1)
        if info.format.startswith(_FORMAT.format("perf script")):
            info.tells_losses = bool(tally.gaps)
            notes.append(_UNASKED)
        info.notes = notes


def _frame(
    heads: Heads, which: np.ndarray[tuple[int], np.dtype[np.int64]], decoded: list[pl.Series]
) -> pl.DataFrame:
    head = [
        pl.Series("seq", which.astype(np.uint64)),
        pl.Series("time_ns", heads.time_ns[which]),
        pl.Series("cpu", np.maximum(heads.cpu[which], 0).astype(np.uint16)),
        pl.Series("pid", heads.pid[which].astype(np.int32)),
    ]
    return pl.DataFrame([*head, *decoded])


_FORMAT = "text of {}"
_MICROS = "times are microseconds, as the text prints them"
#: Source: tools/perf/builtin-script.c:filter_cpu, process_sample_event; perf-script(1)
_UNASKED = (
    "perf script prints lost records with --show-lost-events alone, and what was sampled in vCPU threads with "
    "--guest-code alone: the perf.data itself has both"
)


def find_stamp(data: mmap.mmap | bytes) -> Stamp | None:
    """How the times of a text are printed, by its first lines with an event; None where it has none."""
    for number, chunk in enumerate(chunks(data)):
        if number == _SEARCHED_CHUNKS:
            break
        if number == 0 and (chunk.raw[: 2 * _HEAD_BYTES] == 0).mean() > 0.01:
            return None  # binary
        for stamp in Stamp:
            heads = find_heads(chunk, stamp)
            named = int((heads.name_end > 0).sum())
            # A number before a colon is easily found: counts must be what most lines have.
            if named and (stamp is not Stamp.COUNT or named * 2 > len(chunk)):
                return stamp
    return None


def _describe(source: Source, stamp: Stamp) -> CaptureInfo:
    head = source.head(_HEAD_BYTES).decode("utf-8", "replace")
    said = {name: match for name, pattern in _SAYS.items() if (match := pattern.search(head)) is not None}
    if "tracer" in said:
        kind = "tracefs trace"
    elif head.startswith(("cpus=", "version = ")):
        kind = "trace-cmd report"
    elif "kernel" in said:
        kind = "perf script"
    elif re.search(r"^CPU:\d+ \[LOST", head, re.MULTILINE):
        kind = "trace_pipe"
    else:
        kind = "ftrace"
    options: dict[str, str] = {}
    notes: list[str] = []
    if "tracer" in said and said["tracer"][1] != "nop":
        options["tracer"] = said["tracer"][1]
    if "written" in said:
        kept, _, written = said["written"][1].partition("/")
        if kept != written:
            notes.append(
                f"{int(written) - int(kept):,} older records were overwritten before this text was printed"
            )
    cpus = said.get("cpus")
    return CaptureInfo(
        path=source.path,
        format=" ".join([_FORMAT.format(kind), *(f"({each})" for each in reversed(source.packing))]),
        size_bytes=source.size_bytes,
        kernel=said["kernel"][1] if "kernel" in said else None,
        arch=said["arch"][1] if "arch" in said else None,
        clock={Stamp.COUNT: "counts, of no known unit", Stamp.MICROS: "since the buffer's start"}.get(stamp),
        cpus=int(next(filter(None, cpus.groups()))) if cpus is not None else 0,
        options=options,
        notes=notes,
        describes_events=False,
    )


__all__ = ["TextCapture", "find_stamp"]
