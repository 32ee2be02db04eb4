"""The records of a perf.data in the order of the file: as they stand there, or unpacked.

Source: tools/perf/util/session.c:perf_session__process_compressed_event (v6.12)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import zstandard

from itstrace.readers.perfdata.attributes import HEADER_BYTES
from itstrace.readers.perfdata.contents import Record
from itstrace.readers.perfdata.walk import Chain, find_chain, walk
from itstrace.readers.source import FREE_BYTES, MAX_RATIO

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.readers.payloads import Bytes
    from itstrace.readers.tally import Tally

#: How far is looked ahead in one go: little where records have to be taken alone, much where none has.
_MIN_WINDOW_BYTES, _MAX_WINDOW_BYTES = 4 << 10, 2 << 20
#: Unpacked records are handed on about so many bytes at a time.
_PIECE_BYTES = 1 << 20
#: A file with more broken places than this is no recording; all of them are told (tally.MAX_DAMAGE).
_MAX_HOLES = 500
#: A block unpacks to 128 KiB at most and takes three bytes at least: fed so little, no more than 22 MiB come at once.
_FED_BYTES = 512
#: zstd --ultra --long=31 would want 2 GiB; perf uses the levels up to 22, whose windows are no larger than this.
_WINDOW_BYTES = 128 << 20


class RecordStream:
    """All records from one place of a file to its end. One reading; damage goes into the tally."""

    def __init__(self, raw: Bytes, start: int, tally: Tally, *, big_endian: bool) -> None:
        self._raw = raw
        self._start = start
        self._tally = tally
        self._big_endian = big_endian
        self._unpacker = _Unpacker()
        self._ended = False
        #: places behind which records are missing, in the order of the file
        self.holes = 0

    def chains(self) -> Iterator[Chain]:
        """Give the records, some thousands at a time."""
        at, end = self._start, len(self._raw)
        window = _MIN_WINDOW_BYTES
        while at < end and not self._ended:
            chain = walk(self._raw, at, min(at + window, end), big_endian=self._big_endian)
            if len(chain.starts):
                # What was packed before stands before.
                yield from self._drained()
                yield chain
            window = _next_window(chain.end - at)
            if chain.blocked:
                at = self._alone(chain.end)
                while (piece := self._unpacker.take(_PIECE_BYTES)) is not None:
                    yield from self._inner(piece)
            else:
                at = chain.end
        yield from self._drained()
        if self._unpacker.carried:
            self._tally.bad(
                end, None, f"the packed records end within one, {len(self._unpacker.carried)} bytes of it"
            )

    # -- records that are taken alone --------------------------------------------------------------------------

    def _alone(self, at: int) -> int:
        """Take one record that is not plain, or is none; give where the next one begins."""
        end = len(self._raw)
        if end - at < HEADER_BYTES:
            return self._cut(at, end - at, HEADER_BYTES)
        kind, size = self._number(at, 4), self._number(at + 6, 2)
        if size < HEADER_BYTES:
            return self._resume(at, f"a record of {size} bytes is impossible (type {kind})")
        if at + size > end:
            return self._cut(at, end - at, size)
        if kind in (Record.AUXTRACE, Record.HEADER_TRACING_DATA):
            width = 8 if kind == Record.AUXTRACE else 4
            if size < HEADER_BYTES + width:
                return self._resume(at, f"a record of type {kind} and {size} bytes is impossible")
            behind = at + size + self._number(at + HEADER_BYTES, width)
            return behind if behind <= end else self._cut(at, end - at, behind - at)
        packed = self._raw[at + HEADER_BYTES : at + size]
        if kind == Record.COMPRESSED2:
            # Source: tools/lib/perf/include/perf/event.h:struct perf_record_compressed2: its size is padded
            length = self._number(at + HEADER_BYTES, 8) if size >= HEADER_BYTES + 8 else 0
            packed = packed[8 : 8 + length]
        problem = self._unpacker.feed(packed.tobytes())
        if problem is not None:
            self._tally.bad(at, None, f"{problem}; all records behind it are lost")
            self._ended = True
            self.holes += 1
        return at + size

    def _cut(self, at: int, have: int, need: int) -> int:
        self._tally.bad(at, None, f"the records end within one: it has {need} bytes, {have} of them are here")
        self.holes += 1
        return len(self._raw)

    def _resume(self, at: int, problem: str) -> int:
        """Go on behind a broken record: where several records follow each other as they should."""
        self.holes += 1
        place = at + HEADER_BYTES
        if self.holes > _MAX_HOLES:
            self._tally.bad(at, None, f"{problem}; after {_MAX_HOLES} such places the rest is left out")
            return len(self._raw)
        while place < len(self._raw):
            found = find_chain(self._raw, place, place + _MAX_WINDOW_BYTES, big_endian=self._big_endian)
            if found is not None:
                place = found
                break
            place += _MAX_WINDOW_BYTES
        place = min(place, len(self._raw))
        self._tally.bad(at, None, f"{problem}; {place - at} bytes are left out")
        return place

    def _number(self, at: int, size_bytes: int) -> int:
        return int.from_bytes(
            self._raw[at : at + size_bytes].tobytes(), "big" if self._big_endian else "little"
        )

    # -- packed records ------------------------------------------------------------------------------------------

    def _drained(self) -> Iterator[Chain]:
        piece = self._unpacker.take(1)
        if piece is not None:
            yield from self._inner(piece)

    def _inner(self, piece: bytes) -> Iterator[Chain]:
        """Give the records of one unpacked piece; one that is not whole waits for the next piece."""
        raw = np.frombuffer(piece, np.uint8)
        at, window = 0, _MIN_WINDOW_BYTES
        while len(raw) - at >= HEADER_BYTES:
            chain = walk(raw, at, min(at + window, len(raw)), big_endian=self._big_endian)
            if len(chain.starts):
                yield chain
            window = _next_window(chain.end - at)
            at = chain.end
            if not chain.blocked:
                continue
            if len(raw) - at < HEADER_BYTES:
                break
            order = ">" if self._big_endian else "<"
            kind, size = (
                int(np.ndarray((), order + code, piece, at + off)) for code, off in (("u4", 0), ("u2", 6))
            )
            if size < HEADER_BYTES or kind in (Record.COMPRESSED, Record.COMPRESSED2):
                self._tally.bad(None, None, f"a packed record of type {kind} and {size} bytes is impossible")
                self._ended = True
                self.holes += 1
                return
            if at + size > len(raw):
                break
            at += size  # of a pipe's own records none is packed: they are passed over
        self._unpacker.carried = piece[at:]


def _next_window(walked_bytes: int) -> int:
    """Say how far to look ahead: twice as far as the chain went, for where it was stopped it may be stopped again."""
    return max(_MIN_WINDOW_BYTES, min(2 * walked_bytes, _MAX_WINDOW_BYTES))


class _Unpacker:
    """One stream of zstd through all the packed records of a file."""

    def __init__(self) -> None:
        self._inner = self._fresh()
        self._plain: list[bytes] = []
        self._plain_bytes = 0
        self._fed = 0
        self._given = 0
        #: the beginning of a record whose rest is still packed
        self.carried = b""

    @staticmethod
    def _fresh() -> zstandard.ZstdDecompressionObj:
        return zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompressobj()

    def feed(self, packed: bytes) -> str | None:
        """Unpack some more; give what is wrong with it."""
        self._fed += len(packed)
        at = 0
        try:
            while at < len(packed):
                plain = self._inner.decompress(packed[at : at + _FED_BYTES])
                at = min(at + _FED_BYTES, len(packed))
                self._plain.append(plain)
                self._plain_bytes += len(plain)
                self._given += len(plain)
                if self._given > FREE_BYTES + MAX_RATIO * self._fed:
                    return f"the packed records unpack to more than {MAX_RATIO} times their size"
                if self._inner.eof:
                    at -= len(self._inner.unused_data)
                    self._inner = self._fresh()
        except (zstandard.ZstdError, MemoryError) as error:
            return f"packed records are damaged (zstd: {error})"
        return None

    def take(self, at_least: int) -> bytes | None:
        """Give what was unpacked, behind what was carried over; None where there is less than asked for."""
        if self._plain_bytes < at_least:
            return None
        piece = b"".join((self.carried, *self._plain))
        self.carried = b""
        self._plain, self._plain_bytes = [], 0
        return piece
