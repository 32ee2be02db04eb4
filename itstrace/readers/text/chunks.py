"""A file of text cut into chunks of whole lines, with room around each for words that reach over its ends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from itstrace.readers.text.numbers import GUARD_BYTES, Bytes, Places, Words, words_of

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

#: Enough lines that numpy's fixed cost per call is small, few enough bytes for the cache.
CHUNK_BYTES = 4 << 20
#: No line of a tracer is longer (TRACE_SEQ is 8 KiB; backtraces stand on lines of their own).
MAX_LINE_BYTES = 1 << 16

_NEWLINE, _RETURN, _EQUALS = ord("\n"), ord("\r"), ord("=")


@dataclass(frozen=True)
class Chunk:
    """Whole lines of a file.

    `raw` holds them behind and before GUARD_BYTES spaces; `starts` and `ends` say where in it each line begins and
    ends (without its line end). `cut`: the last line has no line end, for the file ends within it.
    """

    raw: Bytes
    words: Words
    starts: Places
    ends: Places
    offset_bytes: int
    first_line: int
    cut: bool

    def __len__(self) -> int:
        return len(self.starts)

    @cached_property
    def signs(self) -> Places:
        """Where the equals signs stand: values begin behind them."""
        return np.flatnonzero(self.raw == _EQUALS)

    def text(self, start: int, end: int) -> str:
        """A stretch of it as a string; what is no UTF-8 is replaced."""
        return self.raw[start:end].tobytes().decode("utf-8", "replace")

    def file_offset(self, place: int) -> int:
        """Where in the file a place of `raw` lies."""
        return self.offset_bytes + place - GUARD_BYTES


def chunks(data: mmap.mmap, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Cut a file into chunks; lines longer than any tracer's are passed over."""
    position, line, skipping = 0, 0, False
    while position < len(data):
        block = data[position : position + chunk_bytes]
        last = position + len(block) == len(data)
        end = len(block) if last else block.rfind(b"\n") + 1
        if not end:
            # No line end in the whole chunk: the line goes on, and so does looking for its end.
            position += len(block)
            skipping = True
            continue
        begin = 0
        if skipping:
            begin = (block.find(b"\n") + 1) or end
            skipping = False
            line += 1
        if end > begin:
            chunk = _chunk(block[begin:end], position + begin, line)
            line += len(chunk)
            yield chunk
        position += end


def _chunk(block: bytes, offset_bytes: int, first_line: int) -> Chunk:
    size = len(block)
    raw = np.full(size + 2 * GUARD_BYTES, ord(" "), np.uint8)
    raw[GUARD_BYTES : GUARD_BYTES + size] = np.frombuffer(block, np.uint8)
    line_ends = np.flatnonzero(raw == _NEWLINE)
    cut = block[-1] != _NEWLINE
    if cut:
        line_ends = np.append(line_ends, GUARD_BYTES + size)
    starts = np.empty_like(line_ends)
    starts[0] = GUARD_BYTES
    starts[1:] = line_ends[:-1] + 1
    ends = line_ends - (raw[line_ends - 1] == _RETURN)
    return Chunk(raw, words_of(raw), starts, np.maximum(ends, starts), offset_bytes, first_line, cut)
