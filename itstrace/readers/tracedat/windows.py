"""Cutting a capture into spans of time that fit into memory, from the page headers alone.

A file holds all of CPU 0, then all of CPU 1. One cursor per CPU brings in pages, always of the CPU whose
newest page is the oldest, until a batch is full. Up to the oldest of all newest pages every CPU's records are
at hand: that is the span. A page that reaches over the span's end is decoded again with the next one.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from itstrace.readers.tracedat.pages import FOREVER, Bytes, CpuPages, Run
from itstrace.readers.tracedat.ring import GUARD_WORDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.readers.tracedat.clock import Stamps, Times
    from itstrace.readers.tracedat.source import PageSource

#: Pages of one batch: enough of them that a step's fixed cost is small, few enough bytes for the cache.
BATCH_BYTES, BATCH_PAGES, MAX_BATCH_BYTES = 24 << 20, 128, 64 << 20


@dataclass(slots=True)
class Batch:
    """The pages of one span of time, CPU after CPU, copied together.

    `streams[i]` owns the pages `bounds[i]:bounds[i + 1]`, of which the records in [low_ns[i], high_ns[i])
    belong here.
    """

    raw: Bytes
    starts: npt.NDArray[np.int64]  # byte offset of each page
    data_starts: npt.NDArray[np.int64]
    data_ends: npt.NDArray[np.int64]
    stamps: Stamps
    floor_ns: Times
    ceiling_ns: Times
    lost: npt.NDArray[np.int64]
    fresh: npt.NDArray[np.bool_]  # not decoded with an earlier batch already
    file_offset_bytes: npt.NDArray[np.int64]
    streams: list[CpuPages]
    bounds: list[int]
    low_ns: list[int]
    high_ns: list[int]


def batches(sources: list[PageSource], data_offset: int, batch_bytes: int | None = None) -> Iterator[Batch]:
    """Give all pages in batches, each a span of time over all CPUs; spans do not overlap and run forward."""
    newest: list[tuple[int, int]] = []
    if batch_bytes is None:
        page_bytes = max((source.pages.page_bytes for source in sources), default=0)
        batch_bytes = min(max(BATCH_BYTES, BATCH_PAGES * page_bytes), MAX_BATCH_BYTES)

    def load(i: int) -> int:
        """Bring in at least one more page of a CPU, if it has one; give how many bytes came."""
        pages = sources[i].pages
        before, runs = pages.loaded_bytes, len(pages.runs)
        while not pages.exhausted and len(pages.runs) == runs:
            sources[i].load()
        if not pages.exhausted:
            heapq.heappush(newest, (pages.newest_ns, i))
        return pages.loaded_bytes - before

    for i in range(len(sources)):
        load(i)
    while True:
        loaded = 0
        while newest and loaded < batch_bytes:
            loaded += load(heapq.heappop(newest)[1])
        span_end = newest[0][0] if newest else FOREVER
        batch = _gather([(source.pages, span_end) for source in sources], data_offset)
        if batch is not None:
            yield batch
        # So many records may share one time that the span's end never moves, however much is loaded. The
        # order among them is that of the CPUs: what earlier ones have at that time goes first, then the first
        # that has more.
        while newest and newest[0][0] == span_end and loaded >= batch_bytes:
            stuck = newest[0][1]
            batch = _gather([(source.pages, span_end + 1) for source in sources[: stuck + 1]], data_offset)
            if batch is not None:
                yield batch
            loaded = 0
            while newest[0] == (span_end, stuck) and loaded < batch_bytes:
                loaded += load(heapq.heappop(newest)[1])
                if not newest:
                    break
        if not newest and not any(source.pages.runs for source in sources):
            return


def _gather(chosen: list[tuple[CpuPages, int]], data_offset: int) -> Batch | None:
    """Copy the pages that have records before each CPU's end together, and let go of those used up."""
    parts: list[Run] = []
    batch = _Marks()
    for pages, end_ns in chosen:
        if not pages.runs or pages.low_ns >= end_ns:
            continue
        floor = np.concatenate([run.floor_ns for run in pages.runs])
        # How far a page reaches is known from the next one: the newest must wait.
        usable = len(floor) if pages.exhausted else len(floor) - 1
        count = min(int(np.searchsorted(floor, end_ns, side="left")), usable)
        if count <= 0:
            continue
        reach = int(floor[count]) if count < len(floor) else FOREVER
        batch.streams.append(pages)
        batch.bounds.append(batch.bounds[-1] + count)
        batch.low_ns.append(pages.low_ns)
        batch.high_ns.append(end_ns)
        batch.ceilings.append(np.append(floor[1:count], reach))
        batch.fresh.append(np.arange(count) >= pages.stale)
        taken = _take(pages, count)
        parts.extend(taken)
        pages.stale = 0
        if reach >= end_ns != FOREVER:
            # The last page may hold records of the next span.
            pages.runs.appendleft(taken[-1].part(slice(len(taken[-1]) - 1, len(taken[-1]))))
            pages.stale = 1
            pages.low_ns = end_ns
    return _copy(parts, batch, data_offset) if parts else None


@dataclass(slots=True)
class _Marks:
    """What is known of a batch before its pages are copied. See Batch."""

    streams: list[CpuPages] = field(default_factory=list)
    bounds: list[int] = field(default_factory=lambda: [0])
    low_ns: list[int] = field(default_factory=list)
    high_ns: list[int] = field(default_factory=list)
    ceilings: list[Times] = field(default_factory=list)
    fresh: list[npt.NDArray[np.bool_]] = field(default_factory=list)


def _take(pages: CpuPages, count: int) -> list[Run]:
    """Take the first pages out of the queue."""
    taken: list[Run] = []
    while count:
        run = pages.runs.popleft()
        if len(run) > count:
            pages.runs.appendleft(run.part(slice(count, None)))
            run = run.part(slice(0, count))
        taken.append(run)
        count -= len(run)
    return taken


def _copy(parts: list[Run], marks: _Marks, data_offset: int) -> Batch:
    sizes = np.concatenate(
        [
            np.full(after - before, stream.page_bytes)
            for stream, before, after in zip(marks.streams, marks.bounds, marks.bounds[1:], strict=False)
        ]
    )
    ends = np.cumsum(sizes)
    starts = ends - sizes
    raw = np.empty(int(ends[-1]) + 4 * GUARD_WORDS, np.uint8)
    raw[int(ends[-1]) :] = 0
    page = 0
    for part in parts:
        first, size = int(part.starts[0]), int(sizes[page])
        at, span = int(starts[page]), len(part) * size
        if int(part.starts[-1]) == first + span - size:  # they stand together
            raw[at : at + span] = part.raw[first : first + span]
        else:
            for i, start in enumerate(part.starts.tolist()):
                raw[at + i * size : at + (i + 1) * size] = part.raw[start : start + size]
        page += len(part)
    used = np.concatenate([part.ends - part.starts for part in parts])
    return Batch(
        raw,
        starts,
        starts + data_offset,
        starts + used,
        np.concatenate([part.stamps for part in parts]),
        np.concatenate([part.floor_ns for part in parts]),
        np.concatenate(marks.ceilings),
        np.concatenate([part.lost for part in parts]),
        np.concatenate(marks.fresh),
        np.concatenate([part.file_offset_bytes for part in parts]),
        marks.streams,
        marks.bounds,
        marks.low_ns,
        marks.high_ns,
    )
