"""Names of events as small numbers: a file has millions of lines and a few dozen names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from itstrace.readers.text.numbers import Flags, Places, Words, keep_last

if TYPE_CHECKING:
    from itstrace.readers.text.chunks import Chunk

#: Names are compared whole up to this length. Source: include/linux/trace_events.h:MAX_EVENT_NAME_LEN is 64 (v6.12)
_MAX_WORDS = 16
_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64
)
_SLOT_BITS = 16
_NONE = -1


class Names:
    """Numbers for names, given out in the order in which names are met. A file may have no more than `limit`."""

    def __init__(self, limit: int = 4096) -> None:
        self.names: list[str] = []
        self._codes: dict[str, int] = {}
        self._slots = np.full(1 << _SLOT_BITS, _NONE, np.int32)
        #: Known names as columns of words, and their lengths.
        self._known = np.zeros((_MAX_WORDS, 0), np.uint64)
        self._lengths = np.zeros(0, np.int64)
        self._limit = limit

    def codes(self, chunk: Chunk, start: Places, end: Places) -> Places:
        """The number of each name; -1 where it is empty, too long, or one too many."""
        length = end - start
        out = np.full(len(start), _NONE, np.int64)
        which = np.flatnonzero((length > 0) & (length <= 8 * _MAX_WORDS))
        if not len(which):
            return out
        words = _words(chunk, end[which], length[which])
        slots = (words * _FACTORS[np.arange(words.shape[1]) % len(_FACTORS)]).sum(axis=1, dtype=np.uint64)
        slots = (slots ^ (slots >> np.uint64(29))) * _FACTORS[0] >> np.uint64(64 - _SLOT_BITS)
        found = self._slots[slots].astype(np.int64)
        unknown = np.flatnonzero(~self._same(words, length[which], found))
        if len(unknown):
            # New names, and those that share their slot with another: each is looked up once.
            rows, first, inverse = np.unique(words[unknown], axis=0, return_index=True, return_inverse=True)
            codes = np.empty(len(rows), np.int64)
            for i, at in enumerate(unknown[first].tolist()):
                text = chunk.text(int(start[which[at]]), int(end[which[at]]))
                codes[i] = self._code(text, int(length[which[at]]), words[at])
                if codes[i] >= 0 and self._slots[slots[at]] == _NONE:
                    self._slots[slots[at]] = codes[i]
            found[unknown] = codes[inverse.reshape(-1)]
        out[which] = found
        return out

    def _same(self, words: Words, lengths: Places, codes: Places) -> Flags:
        """Whether each name is the known one of that number."""
        if not len(self._lengths):
            return np.zeros(len(words), np.bool_)
        at = np.maximum(codes, 0)
        same: Flags = (codes >= 0) & (self._lengths[at] == lengths)
        for k in range(words.shape[1]):
            same &= self._known[k][at] == words[:, k]
        return same

    def _code(self, text: str, length: int, words: Words) -> int:
        code = self._codes.get(text, _NONE)
        if code == _NONE and len(self.names) < self._limit:
            code = self._codes[text] = len(self.names)
            self.names.append(text)
            column = np.zeros((_MAX_WORDS, 1), np.uint64)
            column[: len(words), 0] = words
            self._known = np.concatenate([self._known, column], axis=1)
            self._lengths = np.append(self._lengths, length)
        return code


def _words(chunk: Chunk, end: Places, length: Places) -> Words:
    """Names as rows of words, the last characters first; as wide as the longest needs."""
    width = int(-(-length.max() // 8))
    words = np.empty((len(end), width), np.uint64)
    for k in range(width):
        words[:, k] = keep_last(chunk.words[np.maximum(end - 8 * (k + 1), 0)], length - 8 * k, np.uint64(0))
    return words
