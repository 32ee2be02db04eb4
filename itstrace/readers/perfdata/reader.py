"""A perf.data as a `Capture`: what it says of itself, and its tracepoints' samples block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

import numpy as np

from itstrace.errors import CaptureError, Damage
from itstrace.readers.base import Block, CaptureInfo, EventFormat, Wanted, read_event, selection
from itstrace.readers.perfdata.blocks import BlockDecoder, Choice
from itstrace.readers.perfdata.header import read_contents
from itstrace.readers.perfdata.others import OtherRecords
from itstrace.readers.perfdata.queue import RoundQueue
from itstrace.readers.perfdata.samples import NO_TRACEPOINT, SampleDecoder
from itstrace.readers.perfdata.stream import RecordStream
from itstrace.readers.source import Source, open_source
from itstrace.readers.tally import Tally

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import polars as pl

#: Clocks of `perf record -k`, by the names that ftrace has for them. Source: include/uapi/linux/time.h
_CLOCKS: Final = {0: "realtime", 1: "mono", 4: "mono_raw", 7: "boot", 11: "tai"}


class PerfData:
    """A perf.data of `perf record`, from a file or a pipe, packed or not, whole or damaged.

    Source: tools/perf/Documentation/perf.data-file-format.txt (v6.12)
    """

    @classmethod
    def open(cls, source: Source | Path | str) -> PerfData:
        """Open a file.

        Raises: CaptureError where nothing of it can be read, or its samples have no time.
        """
        return cls(source if isinstance(source, Source) else open_source(source))

    def __init__(self, source: Source) -> None:
        self._source = source
        path = self._path = source.path
        contents = self._contents = read_contents(path, source.data)
        if all(each.layout.time_at is None for each in contents.attributes):
            raise CaptureError(
                path,
                "its samples have no time, nothing can be told of their order",
                advice="perf record -T ...",
            )
        self._events, self._common, damage = contents.descriptions.events(contents.long_bytes)
        self._formats = {event.full_name: event for event in self._events.values()}
        self._damage = [*source.damage, *contents.damage, *damage]
        self._note_missing()
        self._info = self._describe()
        self._comms: dict[int, str] = {}
        self._tally: Tally | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        self.close()

    # -- what the capture says of itself ---------------------------------------------------------------------

    @property
    def info(self) -> CaptureInfo:
        """What the capture says about itself."""
        return self._info

    @property
    def formats(self) -> Mapping[str, EventFormat]:
        """The event types that the capture describes, by full name: those that were asked for, and ftrace's own."""
        return self._formats

    @property
    def comms(self) -> Mapping[int, str]:
        """Names of tasks, the last each had; they stand among the records, which are read where that was not done."""
        self._complete()
        return self._comms

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def read(self, name: str, limit: int | None = None) -> pl.DataFrame:
        """All records (or the first `limit`) of one event: `system:name`, or a name only one system has.

        Shape: seq, time_ns, cpu, pid, comm, then the event's own fields, in order of time.
        Raises: UsageError where the capture describes no such event, or several of that name.
        """
        return read_event(self, name, limit)

    def counts(self) -> pl.DataFrame:
        """Samples per event and CPU; reads the file where that has not been done. Shape: rows of COUNTS."""
        names = {number: event.full_name for number, event in self._events.items()}
        for i, attribute in enumerate(self._contents.attributes):
            # Source: perf_event.h:struct perf_event_attr: what is no tracepoint has a type and a number
            names[NO_TRACEPOINT + i] = attribute.name or f"perf:{attribute.kind}:{attribute.config:#x}"
        return self._complete().counts_frame(names)

    def span(self) -> tuple[int | None, int | None]:
        """Times of the first and the last sample, in ns; None where there is none."""
        tally = self._complete()
        return tally.first_ns, tally.last_ns

    def gaps(self) -> pl.DataFrame:
        """Stretches in which samples were lost, from the sample before to the one after on that CPU.

        Where a CPU has no sample on one side, the capture's own first or last one bounds the stretch.

        Shape: rows of GAPS
        """
        return self._complete().gaps_frame()

    def damage(self) -> list[Damage]:
        """Where the file is cut short or damaged."""
        return self._damage + self._complete().all_damage()

    def disorder(self) -> int:
        """How many samples came too late in the file for their time; they got the time before them."""
        return self._complete().disorder

    def _complete(self) -> Tally:
        if self._tally is None:
            for _ in self.blocks({}):
                pass
        assert self._tally is not None
        return self._tally

    # -- the samples -----------------------------------------------------------------------------------------

    def blocks(self, wanted: Wanted) -> Iterator[Block]:
        """Stream the events asked for, in order of time; names unknown to the capture are passed over.

        Raises: UsageError where an event has no field of a name asked for.
        """
        choose = selection(wanted, self._path)
        chosen = [(event, choose(event)) for event in self._formats.values()]
        return self._blocks([Choice(event, fields) for event, fields in chosen if fields is not None])

    def _blocks(self, choices: list[Choice]) -> Iterator[Block]:
        contents, big_endian = self._contents, self._contents.big_endian
        tally = Tally()
        raw = np.frombuffer(self._source.data, np.uint8)[: contents.data_end]
        stream = RecordStream(raw, contents.data_start, tally, big_endian=big_endian)
        others = OtherRecords(contents.attributes[0].trailer, tally, big_endian=big_endian)
        others.comms |= contents.descriptions.comms()
        samples = SampleDecoder(contents.attributes, self._common, tally, big_endian=big_endian)
        queue = RoundQueue(raw)
        decoder = BlockDecoder(choices, tally, big_endian=big_endian)
        for chain in stream.chains():
            found = samples.decode(chain)
            others.add(chain, found, stream.holes)
            queue.add(found, chain)
            while (batch := queue.ready()) is not None:
                block = decoder.decode(batch)
                if choices:
                    yield block
        if (batch := queue.rest()) is not None:
            block = decoder.decode(batch)
            if choices:
                yield block
        samples.finish()
        others.finish(stream.holes)
        if tally.disorder:
            problem = f"{tally.disorder} samples came too late in the file for their time; they got the time before them"
            tally.bad(None, None, problem)
        self._comms, self._tally = others.comms, tally

    # -- opening ---------------------------------------------------------------------------------------------

    def _note_missing(self) -> None:
        attributes = self._contents.attributes
        tracepoints = [each for each in attributes if each.is_tracepoint]
        if tracepoints and not self._events:
            self._damage.append(
                Damage(
                    None,
                    None,
                    "the descriptions of the events are missing (perf writes them last): no field can be read",
                )
            )
        for each in tracepoints:
            if each.frequency or each.period > 1:
                event = self._events.get(each.config)
                name = event.full_name if event else f"event {each.config}"
                often = f"{each.period} times a second" if each.frequency else f"every {each.period}th time"
                self._damage.append(
                    Damage(None, None, f"{name} was recorded {often} only; perf record -c 1 records them all")
                )
        if any(each.layout.cpu_at is None for each in tracepoints):
            self._contents.notes["CPU"] = "not recorded (perf record --sample-cpu adds it); shown as 0"

    def _describe(self) -> CaptureInfo:
        contents = self._contents
        clock_ids = {each.clock_id for each in contents.attributes if each.layout.time_at is not None}
        clock_id = next(iter(clock_ids)) if len(clock_ids) == 1 else None
        clock = "perf" if clock_id is None else _CLOCKS.get(clock_id, f"clock {clock_id}")
        pipe, packed = " pipe" if contents.pipe else "", " zstd" if contents.compressed else ""
        return CaptureInfo(
            path=self._path,
            format=f"perf.data{pipe}{packed}",
            size_bytes=self._source.size_bytes,
            kernel=contents.kernel,
            arch=contents.arch,
            clock=clock,
            cpus=contents.cpus,
            little_endian=not contents.big_endian,
            long_size_bytes=contents.long_bytes,
            page_size_bytes=contents.page_bytes,
            options=dict(contents.notes),
        )
