"""Following the chain of record headers: each says how long its record is, and so where the next one begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from itstrace.readers.perfdata.attributes import HEADER_BYTES
from itstrace.readers.perfdata.contents import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from itstrace.readers.payloads import Bytes, Offsets

#: Records that something follows which is no record, or that hold records: they are taken one by one.
TAKEN_ALONE: Final = np.array(
    sorted({Record.HEADER_TRACING_DATA, Record.AUXTRACE, Record.COMPRESSED, Record.COMPRESSED2}), np.uint32
)
#: Beyond any window: where a size of 0 leads to.
_NOWHERE: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class Chain:
    """Some records one behind the other: where in `raw` each begins, of which type and how long it is.

    `end` is where the next one begins. `blocked`: that one is to be looked at alone, or is none at all.
    """

    raw: Bytes
    starts: Offsets
    types: npt.NDArray[np.uint32]
    sizes: Offsets
    end: int
    blocked: bool


def walk(raw: Bytes, start: int, stop: int, *, big_endian: bool) -> Chain:
    """Follow the chain from `start` to the first record that begins at or behind `stop`, or is not plain.

    Records are cut off nowhere but at the end of `raw`.
    """
    order = ">" if big_endian else "<"
    words = min(stop - start, len(raw) - start) // HEADER_BYTES
    if not words:
        nothing = np.empty(0, np.int64)
        return Chain(raw, nothing, nothing.astype(np.uint32), nothing, start, blocked=True)
    # Records are whole words, by the kernel and by perf; where one is not, the chain is followed anew behind it.
    steps = np.ndarray(words, order + "u2", raw, start + 6, (HEADER_BYTES,)).astype(np.uint32) >> 3
    steps[steps == 0] = _NOWHERE
    starts = np.fromiter(_chain(steps.data, words), np.int64) * HEADER_BYTES + start
    types = np.ndarray(max(len(raw) - 3, 0), order + "u4", raw, 0, (1,))[starts].astype(np.uint32)
    sizes = np.ndarray(max(len(raw) - 1, 0), order + "u2", raw, 0, (1,))[starts + 6].astype(np.int64)
    blocked = False
    taken = len(starts)
    alone = sizes < HEADER_BYTES
    if taken:
        alone[-1] |= starts[-1] + sizes[-1] > len(raw)  # all others end before the next begins
    ours = np.flatnonzero(types >= TAKEN_ALONE[0])
    alone[ours[np.isin(types[ours], TAKEN_ALONE)]] = True
    if alone.any():
        taken, blocked = int(np.argmax(alone)), True
    odd = (sizes[:taken] & 7) != 0
    if odd.any():
        taken, blocked = int(np.argmax(odd)) + 1, False
    end = int(starts[taken - 1] + sizes[taken - 1]) if taken else start
    return Chain(raw, starts[:taken], types[:taken], sizes[:taken], end, blocked)


#: So many headers one behind the other are no accident.
_CONVINCING: Final = 6
_LOOKED_AHEAD_BYTES: Final = 64 << 10
#: The types of the kernel (perf_event.h) end below the first, perf's own (event.h) lie between the others (v6.12).
_KERNEL_TYPES_END, _PERF_TYPES, _PERF_TYPES_END = 22, 64, 84


def find_chain(raw: Bytes, start: int, stop: int, *, big_endian: bool) -> int | None:
    """Find the first place from `start` on, in whole words, at which records seem to begin; None before `stop`."""
    order = ">" if big_endian else "<"
    # The records of the last place that is tried lie behind it.
    words = (min(stop + _LOOKED_AHEAD_BYTES, len(raw)) - start) // HEADER_BYTES
    if words <= 0:
        return None
    types = np.ndarray(words, order + "u4", raw, start, (HEADER_BYTES,))
    sizes = np.ndarray(words, order + "u2", raw, start + 6, (HEADER_BYTES,)).astype(np.int64)
    #: behind the words: the end, which is good where all records end there, and everything beyond
    steps = np.append(sizes >> 3, (0, 0))
    good = np.zeros(words + 2, np.bool_)
    good[:words] = ((types > 0) & (types < _KERNEL_TYPES_END)) | (
        (types >= _PERF_TYPES) & (types < _PERF_TYPES_END)
    )
    good[:words] &= (sizes >= HEADER_BYTES) & (sizes & 7 == 0)
    good[words] = len(raw) - start - words * HEADER_BYTES < HEADER_BYTES
    places = np.flatnonzero(good[: min(words, (stop - start) // HEADER_BYTES)])
    at = places
    for _ in range(_CONVINCING):
        at = np.minimum(at + steps[at], words + 1)
        places, at = places[good[at]], at[good[at]]
    return start + int(places[0]) * HEADER_BYTES if len(places) else None


def _chain(step: memoryview, words: int) -> Iterator[int]:
    at = 0
    while at < words:
        yield at
        at += step[at]
