"""Decoding ring buffer pages in lockstep: step i takes the i-th record of every page of a batch at once.

A page can only be walked from its start, each record's length leading to the next. Pages do not depend on
each other, so a batch of them is one array of positions, and a handful of numpy operations moves all of them
one record on.

Source: include/linux/ring_buffer.h:enum ring_buffer_type, kernel/trace/ring_buffer.c:rb_event_length (v6.12);
libtraceevent kbuffer-parse.c for the clock across discarded records.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from itstrace.readers.tracedat.clock import Stamps

#: type_len values; 1 to 28 are a length in words, 0 says that the length stands in the next word
DATA_LONG, DATA_MAX, PADDING, TIME_EXTEND, TIME_STAMP = 0, 28, 29, 30, 31
#: An absolute stamp has 59 bits; the upper five are those of the clock so far.
STAMP_TOP_BITS = np.uint64(0xF8 << 56)
#: Words that may be read behind the last page.
GUARD_WORDS = 4

Words = npt.NDArray[np.uint32]
Pages = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Indices = npt.NDArray[np.int64]
#: What one step gave: page, payload word, payload length in words, stamp.
_Step = tuple[Pages, Indices, npt.NDArray[np.uint32], Stamps]


@dataclass(frozen=True, slots=True)
class Records:
    """The records of a batch, page after page, in the order in which they stand there.

    Shape: `page`, `word` (index of the payload's first word), `words` (its length), `stamp`: one per record;
    `per_page`: how many each page has; `broken`: pages whose last record runs over their end.
    """

    page: Pages
    word: Indices
    words: npt.NDArray[np.uint32]
    stamp: Stamps
    per_page: Indices
    broken: Indices


def decode(words: Words, starts: Indices, ends: Indices, stamps: Stamps, *, big_endian: bool) -> Records:
    """Decode all pages of a batch.

    `words` are the pages' 32-bit words in the machine's own order, with GUARD_WORDS behind them; `starts` and
    `ends` are word indices of each page's first record and of its end.
    """
    type_shift, type_mask = (27, 31) if big_endian else (0, 31)
    delta_shift, delta_mask = (0, (1 << 27) - 1) if big_endian else (5, (1 << 27) - 1)
    # Numbers of 16 bits are sorted by radix; a batch of more pages than that is a file of very many CPUs.
    filled = np.flatnonzero(starts < ends)
    pages: Pages = filled.astype(np.uint16) if len(starts) <= 1 << 16 else filled.astype(np.uint32)
    at, end, clock = starts[pages], ends[pages], stamps[pages]
    steps: list[_Step] = []
    broken: list[Indices] = []
    while pages.size:
        head = words.take(at)
        if big_endian:
            kind, delta = head >> np.uint32(type_shift), head & np.uint32(delta_mask)
        else:
            kind, delta = head & np.uint32(type_mask), head >> np.uint32(delta_shift)
        before, clock = clock, clock + delta
        data = at + 1
        plain = (kind - np.uint32(1)) < DATA_MAX  # kind 0 wraps around to the largest number
        if plain.all():
            steps.append((pages, data, kind, clock))
            at = data + kind
            emitted: npt.NDArray[np.bool_] | None = None
        else:
            at = data + kind
            emitted = plain
            length = kind
            if (long := np.flatnonzero(kind == DATA_LONG)).size:
                # The length word counts itself; a value below 4 wraps around and breaks the page below.
                payload = (words.take(data[long]) - np.uint32(1)) >> np.uint32(2)
                length = kind.copy()
                length[long] = payload
                data[long] += 1
                at[long] = data[long] + payload
                emitted = plain.copy()
                emitted[long] = True
            if (extend := np.flatnonzero(kind == TIME_EXTEND)).size:
                clock[extend] += words.take(data[extend]).astype(np.uint64) << np.uint64(27)
                at[extend] = data[extend] + 1
            if (stamp := np.flatnonzero(kind == TIME_STAMP)).size:
                low = (words.take(data[stamp]).astype(np.uint64) << np.uint64(27)) + delta[stamp]
                clock[stamp] = low | (before[stamp] & STAMP_TOP_BITS)
                at[stamp] = data[stamp] + 1
            if (pad := np.flatnonzero(kind == PADDING)).size:
                # Without a delta nothing follows on the page; else it is a discarded record, whose delta
                # counts.
                skip = ((words.take(data[pad]) + np.uint32(3)) >> np.uint32(2)).astype(np.int64)
                at[pad] = np.where(delta[pad] == 0, end[pad], data[pad] + skip)
            chosen = np.flatnonzero(emitted)
            steps.append((pages[chosen], data[chosen], length[chosen], clock[chosen]))
        live = at < end
        if not live.all():
            over = at > end
            if over.any():
                broken.append(pages[over].astype(np.int64))
                # What this step gave for these pages is no record.
                keep = ~over if emitted is None else ~over[emitted]
                page, word, size, stamp_of = steps[-1]
                steps[-1] = (page[keep], word[keep], size[keep], stamp_of[keep])
            pages, at, end, clock = pages[live], at[live], end[live], clock[live]
    return _by_page(len(starts), steps, broken)


def _by_page(pages: int, steps: list[_Step], broken: list[Indices]) -> Records:
    """Turn steps of pages into pages of steps."""
    if not steps:
        nothing = np.empty(0, np.int64)
        return Records(
            np.empty(0, np.uint16),
            nothing,
            np.empty(0, np.uint32),
            np.empty(0, np.uint64),
            np.zeros(pages, np.int64),
            nothing,
        )
    page: Pages = np.concatenate([step[0] for step in steps])
    order = np.argsort(page, kind="stable")  # 16 bits: a radix sort
    return Records(
        page[order],
        np.concatenate([step[1] for step in steps])[order],
        np.concatenate([step[2] for step in steps])[order],
        np.concatenate([step[3] for step in steps])[order],
        np.bincount(page, minlength=pages).astype(np.int64),
        np.concatenate(broken) if broken else np.empty(0, np.int64),
    )
