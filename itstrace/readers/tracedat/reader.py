"""A trace.dat as a `Capture`: what it says of itself, and its events block by block."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import polars as pl

from itstrace.errors import CaptureError, UsageError
from itstrace.readers.base import (
    Block,
    CaptureInfo,
    Damage,
    EventField,
    EventFormat,
    Wanted,
    column_name,
)
from itstrace.readers.tracedat import fields as field_columns
from itstrace.readers.tracedat.bytesource import Decompressor
from itstrace.readers.tracedat.clock import Clock
from itstrace.readers.tracedat.container import Buffer, Container, read_container
from itstrace.readers.tracedat.fields import Payloads
from itstrace.readers.tracedat.formats import CommonLayout, PageLayout, parse_format, parse_page_layout
from itstrace.readers.tracedat.pages import NONE_LOST, UNKNOWN_LOST, CpuPages, PageSource
from itstrace.readers.tracedat.ring import Words, decode
from itstrace.readers.tracedat.windows import Batch, batches
from itstrace.schemas import COUNTS, GAPS

#: So many places are told one by one; of the rest only the number.
MAX_DAMAGE = 1000


@dataclass(frozen=True, slots=True)
class _Choice:
    """One event that was asked for, with the fields to decode."""

    event: EventFormat
    fields: tuple[EventField, ...]
    empty: pl.DataFrame


@dataclass(slots=True)
class _Tally:
    """What one reading of the records found besides the records."""

    #: (event id, CPU) -> records
    counts: dict[int, npt.NDArray[np.int64]]
    gaps: list[tuple[int, int | None, int, int | None]]
    damage: list[Damage]
    more_damage: int = 0
    records: int = 0
    disorder: int = 0
    first_ns: int | None = None
    last_ns: int | None = None
    complete: bool = False

    def bad(self, offset_bytes: int | None, cpu: int | None, problem: str) -> None:
        """Keep a damaged place."""
        if len(self.damage) < MAX_DAMAGE:
            self.damage.append(Damage(offset_bytes, cpu, problem))
        else:
            self.more_damage += 1


class TraceDat:
    """A trace.dat file of version 6 or 7, whole or damaged.

    Source: trace-cmd.dat.v6(5), trace-cmd.dat.v7(5)
    """

    @classmethod
    def open(cls, path: Path | str, *, buffer: str | None = None) -> TraceDat:
        """Open a file; `buffer` reads that instance alone, else the top buffer and all that share its clock.

        Raises: CaptureError where nothing of the file can be read; UsageError where it has no such buffer.
        """
        return cls(Path(path), buffer)

    def __init__(self, path: Path, buffer: str | None = None) -> None:
        self._path = path
        self._file = _map(path)
        self._container = read_container(path, self._file)
        try:
            self._layout = parse_page_layout(self._container.header_page)
        except ValueError as error:
            raise CaptureError(path, f"the file's description of its pages is damaged: {error}") from error
        self._damage = list(self._container.damage)
        self._events: dict[int, EventFormat] = {}
        self._common = CommonLayout()
        self._read_formats()
        self._formats = {event.full_name: event for event in self._events.values()}
        self._buffers = self._choose_buffers(buffer)
        self._comms = _parse_comms(self._container.cmdlines)
        self._info = self._describe()
        self._tally = _Tally({}, [], [])

    def __enter__(self) -> TraceDat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- what the capture says of itself -----------------------------------------------------------------------

    @property
    def info(self) -> CaptureInfo:
        """What the capture says about itself."""
        return self._info

    @property
    def formats(self) -> Mapping[str, EventFormat]:
        """The event types that the capture describes, by full name."""
        return self._formats

    @property
    def comms(self) -> Mapping[int, str]:
        """Task names by pid, as `saved_cmdlines` held them when the recording ended."""
        return self._comms

    def close(self) -> None:
        """Let go of the file."""
        try:
            self._file.close()
        except BufferError:
            pass  # a block still being iterated has a view of it; the map goes with the last view

    def counts(self) -> pl.DataFrame:
        """Records per event and CPU; reads the file where that has not been done. Shape: rows of COUNTS."""
        tally = self._complete()
        rows: list[tuple[str, int, int]] = []
        for number, per_cpu in tally.counts.items():
            event = self._events.get(number)
            name = f"unknown:{number}" if event is None else event.full_name
            rows.extend((name, int(cpu), int(per_cpu[cpu])) for cpu in np.flatnonzero(per_cpu))
        return pl.DataFrame(rows, schema=COUNTS, orient="row").sort("event", "cpu")

    def span(self) -> tuple[int | None, int | None]:
        """Times of the first and the last record, in ns; None where there is none."""
        tally = self._complete()
        return tally.first_ns, tally.last_ns

    def gaps(self) -> pl.DataFrame:
        """Stretches in which records were lost; `from_ns` is null where nothing was recorded before.

        Shape: rows of GAPS
        """
        return pl.DataFrame(self._complete().gaps, schema=GAPS, orient="row").sort("to_ns", "cpu")

    def damage(self) -> list[Damage]:
        """Where the file is cut short or damaged."""
        tally = self._complete()
        found = self._damage + tally.damage
        if tally.more_damage:
            found.append(Damage(None, None, f"{tally.more_damage} more places are damaged"))
        return found

    def disorder(self) -> int:
        """How many records had stamps that ran backwards within their CPU; they were given the time before them."""
        return self._complete().disorder

    def _complete(self) -> _Tally:
        if not self._tally.complete:
            for _ in self.blocks({}):
                pass
        return self._tally

    # -- the records -----------------------------------------------------------------------------------------------

    def blocks(self, wanted: Wanted) -> Iterator[Block]:
        """Stream the events asked for, in order of time; names that the capture does not describe are passed over.

        Raises: UsageError where an event has no field of a name asked for.
        """
        choices = [
            self._choose(name, names) for name, names in wanted.items() if name in self._formats
        ]
        return self._blocks(choices)

    def _blocks(self, choices: list[_Choice]) -> Iterator[Block]:
        tally = self._tally = _Tally({}, [], [])
        codes = np.zeros(1 << 16, np.uint16)
        for code, choice in enumerate(choices, 1):
            codes[choice.event.event_id & 0xFFFF] = code
        sources = self._sources(tally)
        try:
            for batch in batches(sources, self._layout.data_offset):
                block = self._decode(batch, choices, codes, tally)
                if choices:
                    yield block
            tally.complete = True
        finally:
            for source in sources:
                source.close()

    def _decode(
        self, batch: Batch, choices: list[_Choice], codes: npt.NDArray[np.uint16], tally: _Tally
    ) -> Block:
        """Decode one batch: all headers, and the fields of the events chosen."""
        big_endian = self._container.big_endian
        words: Words = batch.raw[: len(batch.raw) // 4 * 4].view(">u4" if big_endian else "<u4").astype(
            np.uint32, copy=False
        )
        records = decode(
            words, batch.data_starts >> 2, batch.data_ends >> 2, batch.stamps, big_endian=big_endian
        )
        ends = np.cumsum(records.per_page)
        bounds = [0, *(int(ends[b - 1]) for b in batch.bounds[1:])]
        times = self._times(batch, records.page, records.stamp, bounds, tally)
        self._note_losses(batch, records.broken, records.per_page, times, bounds, tally)
        # Pages that reach over the ends of the span give only what lies in it.
        spans = []
        for i in range(len(batch.streams)):
            part = times[bounds[i] : bounds[i + 1]]
            first = int(np.searchsorted(part, batch.low_ns[i], side="left"))
            last = int(np.searchsorted(part, batch.high_ns[i], side="left"))
            spans.append((bounds[i] + first, bounds[i] + last))
        word, sizes = records.word, records.words
        if any(span != (bounds[i], bounds[i + 1]) for i, span in enumerate(spans)):
            word = np.concatenate([word[a:b] for a, b in spans])
            sizes = np.concatenate([sizes[a:b] for a, b in spans])
            times = np.concatenate([times[a:b] for a, b in spans])
        lengths = [b - a for a, b in spans]
        numbers = self._event_numbers(words, word, sizes)
        first = 0
        for stream, length in zip(batch.streams, lengths, strict=True):
            _count(tally.counts, numbers[first : first + length], stream.cpu)
            first += length
        base = tally.records
        tally.records += len(times)
        if len(times):
            first_ns, last_ns = int(times.min()), int(times.max())
            tally.first_ns = first_ns if tally.first_ns is None else min(tally.first_ns, first_ns)
            tally.last_ns = last_ns if tally.last_ns is None else max(tally.last_ns, last_ns)
        if not choices:
            return {}
        order = np.argsort(times, kind="stable")
        ranked = codes[numbers[order]]
        chosen = np.flatnonzero(ranked)
        kinds = ranked[chosen]
        grouped = chosen[np.argsort(kinds, kind="stable")]
        counts = np.bincount(kinds, minlength=len(choices) + 1)
        cpus = np.repeat(
            np.array([stream.cpu for stream in batch.streams], np.uint16), np.array(lengths, np.int64)
        )
        block: Block = {}
        at = 0
        for code, choice in enumerate(choices, 1):
            rank = grouped[at : at + int(counts[code])]
            at += int(counts[code])
            if not len(rank):
                block[choice.event.full_name] = choice.empty
                continue
            index = order[rank]
            payloads = Payloads(
                batch.raw, word[index] << 2, sizes[index].astype(np.int64) << 2, big_endian
            )
            block[choice.event.full_name] = pl.DataFrame(
                [
                    pl.Series("seq", (rank + base).astype(np.uint64)),
                    pl.Series("time_ns", times[index]),
                    pl.Series("cpu", cpus[index]),
                    pl.Series("pid", payloads.numbers(self._common.pid_offset, "i4")),
                    *field_columns.columns(choice.event, choice.fields, payloads),
                ]
            )
        return block

    def _times(
        self,
        batch: Batch,
        page: npt.NDArray[np.uint16] | npt.NDArray[np.uint32],
        stamps: npt.NDArray[np.uint64],
        bounds: list[int],
        tally: _Tally,
    ) -> npt.NDArray[np.int64]:
        """Convert stamps to times, and see to it that they never fall within a CPU."""
        times = stamps.view(np.int64)
        if any(not stream.clock.is_plain for stream in batch.streams):
            times = np.concatenate(
                [
                    stream.clock.to_ns(stamps[bounds[i] : bounds[i + 1]], stream.cpu)
                    for i, stream in enumerate(batch.streams)
                ]
            )
        floor, ceiling = batch.floor_ns[page], batch.ceiling_ns[page]
        falls = times[1:] < times[:-1]
        falls[np.array(bounds[1:-1], np.int64)[np.array(bounds[1:-1]) < len(times)] - 1] = False
        if not falls.any() and not (times < floor).any() and not (times > ceiling).any():
            return times
        # Rare: a clock that was set back, or damage. Order in the buffer is the truth; the time follows it.
        mended = np.clip(times, floor, ceiling)
        for i in range(len(batch.streams)):
            part = slice(bounds[i], bounds[i + 1])
            mended[part] = np.maximum.accumulate(mended[part])
        changed = (mended != times) & batch.fresh[page]
        tally.disorder += int(np.count_nonzero(changed))
        return mended

    def _note_losses(
        self,
        batch: Batch,
        broken: npt.NDArray[np.int64],
        per_page: npt.NDArray[np.int64],
        times: npt.NDArray[np.int64],
        bounds: list[int],
        tally: _Tally,
    ) -> None:
        """Keep where records are missing: before the pages that say so, and behind a record that cannot be."""
        lost = batch.lost
        ends = np.cumsum(per_page)
        starts = ends - per_page
        for i, stream in enumerate(batch.streams):
            first, last = batch.bounds[i], batch.bounds[i + 1]
            noted = {int(p) for p in broken if first <= p < last and batch.fresh[p]}
            for p in sorted(noted):
                tally.bad(
                    int(batch.file_offset_bytes[p]),
                    stream.cpu,
                    f"a record runs over the end of its page (page with stamp {int(batch.stamps[p])})",
                )
            marked = {int(p) + first for p in np.flatnonzero((lost[first:last] != NONE_LOST) & batch.fresh[first:last])}
            for p in sorted(marked | {p + 1 for p in noted}):
                amount = int(lost[p]) if p in marked else UNKNOWN_LOST
                if p >= last:
                    stream.carried_lost = amount
                else:
                    stream.carried_lost = _add_lost(stream.carried_lost, amount)
                    self._close_gap(stream, int(starts[p]), bounds[i], bounds[i + 1], times, tally)
            if stream.carried_lost != NONE_LOST:
                self._close_gap(stream, bounds[i + 1] if noted or marked else bounds[i], bounds[i], bounds[i + 1], times, tally)
            if bounds[i + 1] > bounds[i]:
                stream.last_record_ns = int(times[bounds[i + 1] - 1])

    @staticmethod
    def _close_gap(
        stream: CpuPages, at: int, first: int, last: int, times: npt.NDArray[np.int64], tally: _Tally
    ) -> None:
        """Make a row of the loss before record `at`, if there is that record."""
        if at >= last:
            return
        before = int(times[at - 1]) if at > first else stream.last_record_ns
        lost = None if stream.carried_lost == UNKNOWN_LOST else stream.carried_lost
        tally.gaps.append((stream.cpu, before, int(times[at]), lost))
        stream.carried_lost = NONE_LOST

    def _event_numbers(
        self, words: Words, word: npt.NDArray[np.int64], sizes: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.uint16]:
        """Give every record's event id: common_type, wherever the capture's formats put it."""
        common = self._common
        at, within = divmod(common.type_offset, 4)
        bits = 8 * min(common.type_bytes, 2)
        shift = 32 - 8 * (within + common.type_bytes) if self._container.big_endian else 8 * within
        numbers = (words.take(word + at if at else word) >> np.uint32(shift)) & np.uint32((1 << bits) - 1)
        result = numbers.astype(np.uint16)
        if len(sizes) and int(sizes.min()) * 4 < common.type_offset + common.type_bytes:
            result[sizes.astype(np.int64) * 4 < common.type_offset + common.type_bytes] = 0
        return result

    # -- opening ---------------------------------------------------------------------------------------------------

    def _sources(self, tally: _Tally) -> list[PageSource]:
        """Put a cursor before the first page of every CPU, in the order in which ties are broken."""
        sources = []
        chosen = [(data.cpu, b, data, buffer) for b, buffer in enumerate(self._buffers) for data in buffer.cpus]
        for _, _, data, buffer in sorted(chosen, key=lambda item: (item[0], item[1])):
            pages = CpuPages(data.cpu, buffer.name, buffer.page_bytes, self._clock(buffer), bad=tally.bad)
            sources.append(
                PageSource(
                    self._file,
                    buffer,
                    data,
                    self._layout,
                    big_endian=self._container.big_endian,
                    unpacker=Decompressor(self._container.compression) if buffer.compressed else None,
                    pages=pages,
                )
            )
        return sources

    def _clock(self, buffer: Buffer) -> Clock:
        container = self._container
        # Source: trace-cmd trace-input.c:tracecmd_buffer_instance_handle (3.1): instances are not synchronised
        shift = container.time_shift if buffer.name == "" else None
        return Clock(shift, container.tsc, container.offset_ns)

    def _choose(self, name: str, names: tuple[str, ...] | None) -> _Choice:
        event = self._formats[name]
        if names is None:
            chosen = event.fields
        else:
            known = {field.name: field for field in event.fields}
            known |= {column_name(field.name): field for field in event.fields}
            for each in names:
                if each not in known:
                    raise UsageError(
                        f"{name} has no field {each!r} in {self._path}",
                        advice=f"its fields are {', '.join(field.name for field in event.fields)}",
                    )
            chosen = tuple(known[each] for each in names)
        head = [
            pl.Series("seq", [], dtype=pl.UInt64),
            pl.Series("time_ns", [], dtype=pl.Int64),
            pl.Series("cpu", [], dtype=pl.UInt16),
            pl.Series("pid", [], dtype=pl.Int32),
        ]
        return _Choice(event, chosen, pl.DataFrame(head + field_columns.empty(chosen)))

    def _read_formats(self) -> None:
        for system, text in self._container.format_texts:
            try:
                event, common = parse_format(system, text, self._layout.commit_bytes)
            except ValueError as error:
                self._damage.append(Damage(None, None, str(error)))
                continue
            if event.event_id > 0xFFFF:
                self._damage.append(Damage(None, None, f"{event.full_name} has the impossible id {event.event_id}"))
                continue
            self._events[event.event_id] = event
            if common is not None:
                self._common = common

    def _choose_buffers(self, name: str | None) -> list[Buffer]:
        known = self._container.buffers
        if name is not None:
            chosen = [buffer for buffer in known if buffer.name == name]
            if not chosen:
                names = ", ".join(repr(buffer.name) for buffer in known)
                raise UsageError(f"{self._path} has no buffer {name!r}", advice=f"its buffers are {names}")
            return chosen
        top = next((buffer for buffer in known if buffer.name == ""), known[0])
        return [buffer for buffer in known if buffer.clock == top.clock]

    def _describe(self) -> CaptureInfo:
        container = self._container
        words = (container.uname or "").split()
        others = [buffer for buffer in container.buffers if buffer not in self._buffers]
        options = dict(container.notes)
        options |= {f"cpu stats {i}": text for i, text in enumerate(container.cpu_stats)}
        options |= {f"guest {i}": text for i, text in enumerate(container.guests)}
        if container.trace_cmd:
            options["trace-cmd"] = container.trace_cmd
        if container.time_shift is not None:
            options["synchronised with"] = f"trace id {container.time_shift.peer_trace_id:#x}"
        if others:
            options["buffers left out"] = ", ".join(f"{b.name!r} (clock {b.clock})" for b in others)
        compression = "" if container.version == 6 else f" {container.compression}"
        return CaptureInfo(
            path=self._path,
            format=f"trace.dat v{container.version}{compression}",
            size_bytes=container.size_bytes,
            kernel=words[2] if len(words) > 2 else None,
            uname=container.uname,
            arch=words[-1] if len(words) > 3 else None,
            clock=self._buffers[0].clock or container.clock,
            cpus=container.cpu_count or len({data.cpu for buffer in container.buffers for data in buffer.cpus}),
            little_endian=not container.big_endian,
            long_size_bytes=self._layout.commit_bytes,
            page_size_bytes=self._buffers[0].page_bytes,
            buffers=[buffer.name for buffer in container.buffers],
            trace_id=container.trace_id,
            options=options,
        )


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CaptureError(path, f"cannot be opened: {error}") from error


def _parse_comms(text: str) -> dict[int, str]:
    """Read `saved_cmdlines`: a pid and a name in each line."""
    comms: dict[int, str] = {}
    for line in text.splitlines():
        pid, _, comm = line.strip().partition(" ")
        if pid.isdigit() and comm:
            comms[int(pid)] = comm
    return comms


def _add_lost(one: int, other: int) -> int:
    return UNKNOWN_LOST if UNKNOWN_LOST in (one, other) else one + other


def _count(counts: dict[int, npt.NDArray[np.int64]], numbers: npt.NDArray[np.uint16], cpu: int) -> None:
    """Add one CPU's records to the counts."""
    found = np.bincount(numbers)
    for number in np.flatnonzero(found).tolist():
        per_cpu = counts.get(number)
        if per_cpu is None or len(per_cpu) <= cpu:
            grown = np.zeros(cpu + 1, np.int64)
            if per_cpu is not None:
                grown[: len(per_cpu)] = per_cpu
            counts[number] = per_cpu = grown
        per_cpu[cpu] += found[number]
