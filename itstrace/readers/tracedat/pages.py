"""One CPU's pages in the order of the file, checked and brought in piece by piece.

Pages of a CPU are ordered by time, and the stamp in a page's header is the time of its first record. That is all
that is needed to cut a capture into spans of time without decoding it, see windows.py.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from itstrace.readers.tracedat.bytesource import Decompressor
from itstrace.readers.tracedat.clock import Clock, Stamps, Times
from itstrace.readers.tracedat.container import Buffer, CpuData
from itstrace.readers.tracedat.formats import PageLayout

#: Bits of the commit word. Source: kernel/trace/ring_buffer.c:RB_MISSED_EVENTS, RB_MISSED_STORED (v6.12)
COMMIT_MASK = (1 << 27) - 1
MISSED_EVENTS = 1 << 31
MISSED_STORED = 1 << 30

#: `lost` of a page: nothing lost before it, or lost without a count
NONE_LOST, UNKNOWN_LOST = 0, -1

#: trace-cmd compresses ten pages at a time; a chunk that claims more than this lies.
MAX_CHUNK_BYTES = 16 << 20
#: How much of an uncompressed file is looked at in one go.
RUN_BYTES = 64 << 10
#: A lone page whose stamp is off by more than this from its neighbours' is damaged, not merely disordered.
OUTLIER_NS = 1_000_000_000

Bytes = npt.NDArray[np.uint8]
Bad = Callable[[int | None, int, str], None]


@dataclass(slots=True)
class Run:
    """Some pages that stand one after the other in `raw`; those kept are at the byte offsets `starts`."""

    raw: Bytes
    starts: npt.NDArray[np.int64]
    data_ends: npt.NDArray[np.int64]  # byte offset within `raw` at which a page's records end
    stamps: Stamps  # as they stand in the page header
    floor_ns: Times  # the same, converted and never falling
    lost: npt.NDArray[np.int64]
    file_offset_bytes: npt.NDArray[np.int64]  # of the page, or of the chunk that holds it

    def __len__(self) -> int:
        return len(self.starts)

    def part(self, which: slice | npt.NDArray[np.intp]) -> Run:
        """Give some of the pages."""
        return Run(
            self.raw,
            self.starts[which],
            self.data_ends[which],
            self.stamps[which],
            self.floor_ns[which],
            self.lost[which],
            self.file_offset_bytes[which],
        )


@dataclass(slots=True)
class CpuPages:
    """The pages of one CPU of one buffer. `runs` holds what was loaded and is not yet used up."""

    cpu: int
    buffer_name: str
    page_bytes: int
    clock: Clock
    runs: deque[Run] = field(default_factory=deque)
    #: nothing more will be loaded
    exhausted: bool = False
    #: records before this time have been given out already
    low_ns: int = -(1 << 63)
    #: the newest page that `runs` holds
    last_floor_ns: int = -(1 << 63)
    #: of the last record decoded, for gaps
    last_record_ns: int | None = None
    #: records lost before the next record, found with a page that has none
    carried_lost: int = NONE_LOST
    #: how many bytes of pages were loaded so far
    loaded_bytes: int = 0
    #: how many pages at the head of `runs` were in an earlier batch
    stale: int = 0
    _held: Run | None = None
    _highest_ns: int = -(1 << 63)
    _lost_next: int = NONE_LOST

    def publish(self, run: Run | None) -> None:
        """Take in freshly read pages (None: there are no more), and let go of all but the last.

        The last waits for its follower: only with it can be told whether its stamp is damaged.
        """
        if run is None:
            self.exhausted = True
            if self._held is not None:
                self._append(self._held)
                self._held = None
            return
        if not len(run):
            return
        if self._held is not None:
            self._held, held = None, self._held
            if not self._is_outlier(int(held.floor_ns[0]), int(run.floor_ns[0])):
                self._append(held)
            else:
                self._drop(held)
        if len(run) > 1:
            body = run.part(slice(0, -1))
            if np.all(run.floor_ns[1:] >= run.floor_ns[:-1]) and int(run.floor_ns[0]) >= self._highest_ns:
                self._append(body)
            else:
                for i in range(len(body)):
                    page = body.part(slice(i, i + 1))
                    if self._is_outlier(int(page.floor_ns[0]), int(run.floor_ns[i + 1])):
                        self._drop(page)
                    else:
                        self._append(page)
        self._held = run.part(slice(len(run) - 1, len(run)))

    bad: Bad = field(default=lambda *_: None)

    def _is_outlier(self, stamp_ns: int, next_ns: int) -> bool:
        if next_ns < self._highest_ns:
            return False
        return stamp_ns > next_ns + OUTLIER_NS or stamp_ns < self._highest_ns - OUTLIER_NS > -(1 << 62)

    def _drop(self, page: Run) -> None:
        self.bad(int(page.file_offset_bytes[0]), self.cpu, "a page's time stamp is far off those of its neighbours")
        self._lost_next = UNKNOWN_LOST

    def _append(self, run: Run) -> None:
        if self._lost_next != NONE_LOST:
            if run.lost[0] == NONE_LOST:
                run.lost[0] = self._lost_next
            self._lost_next = NONE_LOST
        run.floor_ns = np.maximum.accumulate(np.maximum(run.floor_ns, self._highest_ns))
        self._highest_ns = self.last_floor_ns = int(run.floor_ns[-1])
        self.runs.append(run)
        self.loaded_bytes += len(run) * self.page_bytes

    def mark_lost(self) -> None:
        """Remember that records are missing before the next page."""
        if self._held is not None:
            self._append_held()
        self._lost_next = UNKNOWN_LOST

    def _append_held(self) -> None:
        assert self._held is not None
        self._append(self._held)
        self._held = None


class PageSource:
    """Reads the pages of one CPU out of the file, a run or a compressed chunk at a time."""

    def __init__(
        self,
        file: mmap.mmap,
        buffer: Buffer,
        data: CpuData,
        layout: PageLayout,
        *,
        big_endian: bool,
        unpacker: Decompressor | None,
        pages: CpuPages,
    ) -> None:
        self.pages = pages
        self._file = memoryview(file)
        self._layout = layout
        self._page_bytes = buffer.page_bytes
        self._end = min(data.offset_bytes + data.size_bytes, len(file))
        self._position = data.offset_bytes
        order = ">" if big_endian else "<"
        self._stamp = np.dtype(f"{order}u8")
        self._commit = np.dtype(f"{order}u{layout.commit_bytes}")
        self._order = order
        self._unpacker = unpacker
        self._chunks_left = 0
        if unpacker is not None:
            if self._end - self._position < 4:
                self._stop("the CPU's data is too short for its chunks")
            else:
                self._chunks_left = self._u32()

    def close(self) -> None:
        """Let go of the file."""
        self._file.release()

    def load(self) -> None:
        """Bring in the next pages, or find that there are no more."""
        if self._unpacker is None:
            self._load_plain()
        else:
            self._load_chunk()

    def _load_plain(self) -> None:
        size = min(max(RUN_BYTES // self._page_bytes, 1) * self._page_bytes, self._end - self._position)
        if size <= 0:
            self.pages.publish(None)
            return
        offset = self._position
        self._position += size
        raw = np.frombuffer(self._file[offset : offset + size], np.uint8)
        self._check(raw, offset, page_offsets=True)

    def _load_chunk(self) -> None:
        assert self._unpacker is not None
        if self._chunks_left <= 0:
            self.pages.publish(None)
            return
        self._chunks_left -= 1
        offset = self._position
        if self._end - offset < 8:
            self._stop("the CPU's data ends before its last chunk")
            return
        packed_bytes, plain_bytes = self._u32(), self._u32()
        if packed_bytes > self._end - self._position:
            self._stop(f"a chunk of {packed_bytes} bytes is longer than what is left of the CPU's data", offset)
            return
        packed = self._file[self._position : self._position + packed_bytes]
        self._position += packed_bytes
        if plain_bytes > max(MAX_CHUNK_BYTES, 16 * self._page_bytes):
            self._skip_chunk(offset, f"a chunk claims to hold {plain_bytes} bytes; it is left out")
            return
        try:
            plain = self._unpacker.unpack(packed, plain_bytes)
        except ValueError as error:
            self._skip_chunk(offset, f"a chunk is damaged and left out: {error}")
            return
        finally:
            packed.release()
        self._check(np.frombuffer(plain, np.uint8), offset, page_offsets=False)

    def _skip_chunk(self, offset: int, problem: str) -> None:
        self.pages.bad(offset, self.pages.cpu, problem)
        self.pages.mark_lost()

    def _stop(self, problem: str, offset: int | None = None) -> None:
        self.pages.bad(self._position if offset is None else offset, self.pages.cpu, problem)
        self._position, self._chunks_left = self._end, 0
        self.pages.publish(None)

    def _u32(self) -> int:
        value = int.from_bytes(
            self._file[self._position : self._position + 4], "big" if self._order == ">" else "little"
        )
        self._position += 4
        return value

    def _check(self, raw: Bytes, offset: int, *, page_offsets: bool) -> None:
        """Read the page headers, leave out what cannot be a page, and hand on the rest."""
        layout, size = self._layout, self._page_bytes
        whole, rest = divmod(len(raw), size)
        count = whole + (rest > layout.data_offset)
        if count == 0:
            return
        if count > whole:  # the file is cut within this page
            padded = np.zeros(count * size, np.uint8)
            padded[: len(raw)] = raw
            raw = padded
        table = raw[: count * size].reshape(count, size)
        stamps = _column(table, layout.stamp_offset, self._stamp)
        commits = _column(table, layout.commit_offset, self._commit)
        sizes = (commits & COMMIT_MASK).astype(np.int64)
        room = size - layout.data_offset
        lost = self._lost(table, commits, sizes)
        starts = np.arange(count, dtype=np.int64) * size
        where = offset + starts if page_offsets else np.full(count, offset, np.int64)
        good = sizes <= room
        if not good.all():
            for i in np.flatnonzero(~good):
                self.pages.bad(int(where[i]), self.pages.cpu, f"a page claims {sizes[i]} bytes of records")
        if count > whole:
            sizes[-1] = min(int(sizes[-1]), rest - layout.data_offset)
        floor = self.pages.clock.to_ns(stamps, self.pages.cpu)
        impossible = good & (sizes > 0) & (stamps >> np.uint64(63) != 0)
        for i in np.flatnonzero(impossible):
            self.pages.bad(int(where[i]), self.pages.cpu, f"a page's time stamp {int(stamps[i]):#x} is impossible")
        keep = np.flatnonzero(good & ~impossible & (sizes > 0))
        if len(keep) < count:
            # What a page without records knows of lost ones is told by the next page.
            bad = ~good | impossible
            carried = np.where(bad, UNKNOWN_LOST, lost)
            for i in np.flatnonzero((bad | (sizes == 0)) & (carried != NONE_LOST)):
                later = keep[keep > i]
                if len(later):
                    lost[later[0]] = lost[later[0]] or carried[i]
                else:
                    self._lost_tail = int(carried[i])
        tail, self._lost_tail = self._lost_tail, NONE_LOST
        run = Run(raw, starts, starts + layout.data_offset + sizes, stamps, floor, lost, where).part(keep)
        self.pages.publish(run)
        if tail != NONE_LOST:
            self.pages.mark_lost()

    _lost_tail: int = NONE_LOST

    def _lost(self, table: Bytes, commits: npt.NDArray[np.uint64], sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Give how many records were lost before each page: a count, NONE_LOST or UNKNOWN_LOST."""
        lost = np.zeros(len(table), np.int64)
        for i in np.flatnonzero(commits & MISSED_EVENTS):
            lost[i] = UNKNOWN_LOST
            # Source: kernel/trace/ring_buffer.c:ring_buffer_read_page (v6.12): the count is a long behind the data
            at = self._layout.data_offset + int(sizes[i])
            if commits[i] & MISSED_STORED and at + self._commit.itemsize <= table.shape[1]:
                count = int(table[i, at : at + self._commit.itemsize].view(self._commit)[0])
                lost[i] = count if 0 < count < 1 << 62 else UNKNOWN_LOST
        return lost


def _column(table: Bytes, offset: int, dtype: np.dtype[np.uint64]) -> npt.NDArray[np.uint64]:
    """Give the number at one offset of every page."""
    return np.ascontiguousarray(table[:, offset : offset + dtype.itemsize]).view(dtype)[:, 0].astype(np.uint64)
