"""Reading one CPU's pages out of the file: as they stand there, or out of compressed chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from itstrace.readers.tracedat.pages import NONE_LOST, UNKNOWN_LOST, Bytes, CpuPages, Run

if TYPE_CHECKING:
    import mmap

    from itstrace.readers.bytesource import Decompressor
    from itstrace.readers.formats import PageLayout
    from itstrace.readers.tracedat.contents import CpuData

#: Bits of the commit word. Source: kernel/trace/ring_buffer.c:RB_MISSED_EVENTS, RB_MISSED_STORED (v6.12)
COMMIT_MASK = (1 << 27) - 1
MISSED_EVENTS, MISSED_STORED = 1 << 31, 1 << 30

#: trace-cmd compresses ten pages at a time; a chunk that claims much more than that lies.
MAX_CHUNK_BYTES = 16 << 20
#: How much is looked at in one go: together by all CPUs, and by one at most.
ALL_RUNS_BYTES, RUN_BYTES = 64 << 20, 256 << 10


class PageSource:
    """Brings pages of one CPU from the file to its `CpuPages`, a run at a time."""

    def __init__(
        self,
        file: mmap.mmap,
        data: CpuData,
        layout: PageLayout,
        pages: CpuPages,
        *,
        big_endian: bool,
        unpacker: Decompressor | None,
        run_bytes: int = RUN_BYTES,
    ) -> None:
        self.pages = pages
        self._file = memoryview(file)
        self._layout = layout
        self._position = min(data.offset_bytes, len(file))
        self._end = min(data.offset_bytes + data.size_bytes, len(file))
        self._cut = data.offset_bytes + data.size_bytes > len(file)
        self._run_bytes = max(run_bytes // pages.page_bytes, 1) * pages.page_bytes
        order = ">" if big_endian else "<"
        self._u32 = np.dtype(f"{order}u4")
        self._stamp = np.dtype(f"{order}u8")
        self._commit = np.dtype(f"{order}u{layout.commit_bytes}")
        self._unpacker = unpacker
        self._chunks_left = 0
        if unpacker is not None:
            if self._end - self._position >= 4:
                self._chunks_left = self._number()
            else:
                self._stop(self._position, "the CPU's data is too short for its chunks")

    def close(self) -> None:
        """Let go of the file."""
        self._file.release()

    def load(self) -> None:
        """Bring in the next pages, or find that there are no more."""
        if self._unpacker is None:
            self._load_plain()
        else:
            self._load_chunks(self._unpacker)

    def _load_plain(self) -> None:
        offset = self._position
        size = min(self._run_bytes, self._end - offset)
        if size <= 0:
            self._finish()
            return
        self._position += size
        raw = np.frombuffer(self._file[offset : offset + size], np.uint8)
        self._publish(raw, offset + np.arange(0, size, self.pages.page_bytes, dtype=np.int64))

    def _load_chunks(self, unpacker: Decompressor) -> None:
        """Unpack chunks until there is enough for a run."""
        page_bytes = self.pages.page_bytes
        plain: list[bytes] = []
        offsets: list[int] = []
        total, problem, at = 0, None, self._position
        while total < self._run_bytes and self._chunks_left > 0 and problem is None:
            self._chunks_left -= 1
            at = self._position
            if self._end - at < 8:
                self._chunks_left = 0
                problem = "the CPU's data ends before its last chunk"
                break
            packed_bytes, plain_bytes = self._number(), self._number()
            start = self._position
            if packed_bytes > self._end - start:
                self._chunks_left = 0
                problem = f"a chunk of {packed_bytes} bytes is longer than what is left of the CPU's data"
                break
            self._position += packed_bytes
            if plain_bytes > max(MAX_CHUNK_BYTES, 2 * page_bytes):
                problem = f"a chunk claims to hold {plain_bytes} bytes; it is left out"
                break
            with self._file[start : start + packed_bytes] as packed:
                try:
                    chunk = unpacker.unpack(packed, plain_bytes)
                except ValueError as error:
                    problem = f"a chunk is damaged and left out: {error}"
                    break
            if plain_bytes % page_bytes:
                problem = f"a chunk of {plain_bytes} bytes holds no whole number of pages"
                chunk = chunk[: plain_bytes // page_bytes * page_bytes]
            plain.append(chunk)
            offsets += [at] * (len(chunk) // page_bytes)
            total += len(chunk)
        if offsets:
            self._publish(np.frombuffer(b"".join(plain), np.uint8), np.array(offsets, np.int64))
        if problem is not None:
            self.pages.bad(at, self.pages.cpu, problem)
            self.pages.mark_lost()
        if self._chunks_left <= 0:
            self._finish()

    def _number(self) -> int:
        value = int(np.frombuffer(self._file[self._position : self._position + 4], self._u32)[0])
        self._position += 4
        return value

    def _stop(self, offset: int, problem: str) -> None:
        self.pages.bad(offset, self.pages.cpu, problem)
        self.pages.mark_lost()

    def _finish(self) -> None:
        if self._cut:
            self.pages.mark_lost()
        self.pages.finish()

    def _publish(self, raw: Bytes, file_offsets: npt.NDArray[np.int64]) -> None:
        """Read the page headers, leave out what cannot be a page, and hand on the rest.

        `file_offsets` has one number per page; the last page may be cut short.
        """
        layout, size, cpu = self._layout, self.pages.page_bytes, self.pages.cpu
        count = len(file_offsets)
        rest = len(raw) - (count - 1) * size
        if rest < size:  # the file ends within the page: what there is of it counts
            if rest <= layout.data_offset:
                count -= 1
                if count == 0:
                    return
            else:
                raw = np.concatenate([raw, np.zeros(size - rest, np.uint8)])
        table = raw[: count * size].reshape(count, size)
        stamps = _column(table, layout.stamp_offset, self._stamp)
        commits = _column(table, layout.commit_offset, self._commit)
        sizes = (commits & COMMIT_MASK).astype(np.int64)
        lost = self._lost(table, commits, sizes)
        damaged = sizes > size - layout.data_offset
        for i in np.flatnonzero(damaged).tolist():
            self.pages.bad(
                int(file_offsets[i]), cpu, f"a page claims {sizes[i]} bytes of records; it is left out"
            )
        for i in np.flatnonzero(~damaged & (sizes > 0) & (stamps >> np.uint64(63) != 0)).tolist():
            damaged[i] = True
            self.pages.bad(
                int(file_offsets[i]), cpu, f"a page's stamp {stamps[i]:#x} is impossible; it is left out"
            )
        keep = np.flatnonzero(~damaged & (sizes > 0))
        if rest < size and count == len(file_offsets):
            sizes[-1] = min(int(sizes[-1]), rest - layout.data_offset)
        starts = np.arange(count, dtype=np.int64) * size
        floor = self.pages.clock.to_ns(stamps, cpu)
        run = Run(raw, starts, starts + layout.data_offset + sizes, stamps, floor, lost, file_offsets[:count])
        if len(keep) == count:
            self.pages.publish(run)
            return
        # A page left out is a loss before the next one; an empty page hands on what it says of losses.
        lost[damaged] = UNKNOWN_LOST
        first = 0
        for i in np.setdiff1d(np.arange(count), keep).tolist():
            self.pages.publish(run.part(slice(first, i)))
            if lost[i] != NONE_LOST:
                self.pages.mark_lost(int(lost[i]))
            first = i + 1
        self.pages.publish(run.part(slice(first, count)))

    def _lost(
        self, table: Bytes, commits: npt.NDArray[np.uint64], sizes: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Give how many records were lost before each page."""
        lost = np.full(len(table), NONE_LOST, np.int64)
        for i in np.flatnonzero(commits & np.uint64(MISSED_EVENTS)).tolist():
            lost[i] = UNKNOWN_LOST
            # Source: kernel/trace/ring_buffer.c:ring_buffer_read_page (v6.12): the count is a long behind the
            # data
            at = self._layout.data_offset + int(sizes[i])
            if int(commits[i]) & MISSED_STORED and at + self._commit.itemsize <= table.shape[1]:
                count = int(table[i, at : at + self._commit.itemsize].view(self._commit)[0])
                lost[i] = count if 0 < count < 1 << 62 else UNKNOWN_LOST
        return lost


def _column(table: Bytes, offset: int, dtype: np.dtype[np.unsignedinteger]) -> npt.NDArray[np.uint64]:
    """Give the number at one offset of every page."""
    cells = np.ascontiguousarray(table[:, offset : offset + dtype.itemsize])
    return cells.view(dtype)[:, 0].astype(np.uint64)
