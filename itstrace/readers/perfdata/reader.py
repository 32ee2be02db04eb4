"""A perf.data as a `Capture`: what it says of itself, and its tracepoints' samples block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from itstrace.errors import CaptureError, Damage
from itstrace.readers.base import Block, CaptureInfo
from itstrace.readers.described import Choice, DescribedCapture
from itstrace.readers.perfdata.blocks import BlockDecoder
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


class PerfData(DescribedCapture):
    """A perf.data of `perf record`, from a file or a pipe, packed or not, whole or damaged.

    Source: tools/perf/Documentation/perf.data-file-format.txt (v6.12)
    """

    _backwards = "samples came too late in the file for their time; they got the time before them"

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

    # -- what the capture says of itself ---------------------------------------------------------------------

    @property
    def comms(self) -> Mapping[int, str]:
        """Names of tasks, the last each had; they stand among the records, which are read where that was not done."""
        self._complete()
        return self._comms

    def close(self) -> None:
        """Let go of the file."""
        self._source.close()

    def counts(self) -> pl.DataFrame:
        """Samples per event and CPU; reads the file where that has not been done. Shape: rows of COUNTS."""
        names = {number: event.full_name for number, event in self._events.items()}
        for i, attribute in enumerate(self._contents.attributes):
            # Source: perf_event.h:struct perf_event_attr: what is no tracepoint has a type and a number
            names[NO_TRACEPOINT + i] = attribute.name or f"perf:{attribute.kind}:{attribute.config:#x}"
        return self._complete().counts_frame(names)

    # -- the samples -----------------------------------------------------------------------------------------

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
