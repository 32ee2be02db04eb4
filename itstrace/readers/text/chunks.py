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

    def line(self, number: int) -> bytes:
        """One line of the chunk."""
        return self.raw[self.starts[number] : self.ends[number]].tobytes()

    def text(self, start: int, end: int) -> str:
        """A stretch of it as a string; what is no UTF-8 is replaced."""
        return self.raw[start:end].tobytes().decode("utf-8", "replace")


def chunks(data: mmap.mmap | bytes, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """Cut a file into chunks; lines longer than a chunk are passed over."""
    position, line = 0, 0
    while position < len(data):
        stop = min(position + chunk_bytes, len(data))
        end = stop if stop == len(data) else data.rfind(b"\n", position, stop) + 1
        if end <= position:
            # No line end in the whole chunk: nothing that a tracer wrote. It goes on after the next one.
            found = data.find(b"\n", stop)
            position = len(data) if found < 0 else found + 1
            line += 1
            continue
        chunk = _chunk(data, position, end, line)
        line += len(chunk)
        yield chunk
        position = end


def _chunk(data: mmap.mmap | bytes, begin: int, end: int, first_line: int) -> Chunk:
    size = end - begin
    raw = np.empty(size + 2 * GUARD_BYTES, np.uint8)
    raw[:GUARD_BYTES] = raw[GUARD_BYTES + size :] = ord(" ")
    raw[GUARD_BYTES : GUARD_BYTES + size] = np.frombuffer(data, np.uint8, size, begin)
    line_ends = np.flatnonzero(raw == _NEWLINE)
    cut = raw[GUARD_BYTES + size - 1] != _NEWLINE
    if cut:
        line_ends = np.append(line_ends, GUARD_BYTES + size)
    starts = np.empty_like(line_ends)
    starts[0] = GUARD_BYTES
    starts[1:] = line_ends[:-1] + 1
    ends = line_ends - (raw[line_ends - 1] == _RETURN)
    return Chunk(raw, words_of(raw), starts, np.maximum(ends, starts), begin, first_line, bool(cut))
