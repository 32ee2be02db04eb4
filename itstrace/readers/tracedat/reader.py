"""A trace.dat as a `Capture`: what it says of itself, and its events block by block."""

from __future__ import annotations

from typing import TYPE_CHECKING

from itstrace.errors import CaptureError, UsageError
from itstrace.readers.base import Block, CaptureInfo
from itstrace.readers.bytesource import Decompressor
from itstrace.readers.described import Choice, DescribedCapture
from itstrace.readers.formats import parse_page_layout
from itstrace.readers.source import Source, open_source
from itstrace.readers.tracedat.blocks import BlockDecoder
from itstrace.readers.tracedat.clock import Clock
from itstrace.readers.tracedat.container import read_container
from itstrace.readers.tracedat.pages import CpuPages
from itstrace.readers.tracedat.source import ALL_RUNS_BYTES, RUN_BYTES, PageSource
from itstrace.readers.tracedat.tally import RingTally
from itstrace.readers.tracedat.windows import batches

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import polars as pl

    from itstrace.readers.tracedat.contents import Buffer, Container


class TraceDat(DescribedCapture):
    """A trace.dat file of version 6 or 7, whole or damaged.

    Source: trace-cmd.dat.v6(5), trace-cmd.dat.v7(5)
    """

    _backwards = (
        "records are stamped before those ahead of them in their CPU's buffer; they got the time of these"
    )

    @classmethod
    def open(cls, source: Source | Path | str, *, buffer: str | None = None) -> TraceDat:
        """Open a file; `buffer` reads that instance alone, else the top buffer and all that share its clock.

        Raises: CaptureError where nothing of the file can be read; UsageError where it has no such buffer.
        """
        source = source if isinstance(source, Source) else open_source(source)
        return cls([source], read_container(source.path, source.data), buffer)

    def __init__(self, sources: Sequence[Source], container: Container, buffer: str | None = None) -> None:
        self._sources_open = sources
        path = self._path = container.path
        self._file = sources[0].data
        self._container = container
        try:
            self._layout = parse_page_layout(self._container.header_page)
        except ValueError as error:
            raise CaptureError(path, f"the file's description of its pages is damaged: {error}") from error
        self._events, self._common, damage = self._container.events(self._layout.commit_bytes)
        found = (place for source in sources for place in source.damage)
        self._damage = [*found, *self._container.damage, *damage]
        self._formats = {event.full_name: event for event in self._events.values()}
        self._buffers = self._choose_buffers(buffer)
        self._comms = self._container.comms()
        self._info = self._describe()

    # -- what the capture says of itself ---------------------------------------------------------------------

    @property
    def comms(self) -> Mapping[int, str]:
        """Task names by pid, as `saved_cmdlines` held them when the recording ended."""
        return self._comms

    def close(self) -> None:
        """Let go of the file."""
        for source in self._sources_open:
            source.close()

    def counts(self) -> pl.DataFrame:
        """Records per event and CPU; reads the file where that has not been done. Shape: rows of COUNTS."""
        names = {number: event.full_name for number, event in self._events.items()}
        return self._complete().counts_frame(names)

    # -- the records -----------------------------------------------------------------------------------------

    def _blocks(self, choices: list[Choice]) -> Iterator[Block]:
        tally = RingTally()
        sources = self._sources(tally)
        decoder = BlockDecoder(choices, self._common, tally, big_endian=self._container.big_endian)
        try:
            for batch in batches(sources, self._layout.data_offset):
                block = decoder.decode(batch)
                if choices:
                    yield block
        finally:
            for source in sources:
                source.close()
        tally.finish([source.pages for source in sources])
        self._tally = tally

    # -- opening ---------------------------------------------------------------------------------------------

    def _sources(self, tally: RingTally) -> list[PageSource]:
        """Put a cursor before the first page of every CPU, in the order in which ties are broken."""
        chosen = [(data.cpu, i, data) for i, buffer in enumerate(self._buffers) for data in buffer.cpus]
        run_bytes = min(RUN_BYTES, ALL_RUNS_BYTES // max(len(chosen), 1))
        sources = []
        for cpu, i, data in sorted(chosen, key=lambda item: item[:2]):
            buffer = self._buffers[i]
            sources.append(
                PageSource(
                    self._file if data.file is None else data.file,
                    data,
                    self._layout,
                    CpuPages(cpu, buffer.page_bytes, self._clock(buffer), tally.bad),
                    big_endian=self._container.big_endian,
                    unpacker=Decompressor(self._container.compression) if buffer.compressed else None,
                    run_bytes=run_bytes,
                )
            )
        return sources

    def _clock(self, buffer: Buffer) -> Clock:
        container = self._container
        # Source: trace-cmd trace-input.c:tracecmd_buffer_instance_handle (3.1): instances are not
        # synchronised
        shift = container.time_shift if buffer.name == "" else None
        return Clock(shift, container.tsc, container.offset_ns)

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
        return CaptureInfo(
            path=self._path,
            format=container.format,
            size_bytes=container.size_bytes,
            kernel=words[2] if len(words) > 2 else None,
            uname=container.uname,
            arch=words[-1] if len(words) > 3 else None,
            clock=self._buffers[0].clock or container.clock,
            cpus=container.cpu_count
            or len({data.cpu for buffer in container.buffers for data in buffer.cpus}),
            little_endian=not container.big_endian,
            long_size_bytes=self._layout.commit_bytes,
            page_size_bytes=self._buffers[0].page_bytes,
            buffers=[buffer.name for buffer in container.buffers],
            trace_id=container.trace_id,
            options=options,
        )
