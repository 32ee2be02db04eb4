"""Following the chain of record headers: each says how long its record is, and so where the next one begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from itstrace.readers.perfdata.attributes import HEADER_BYTES
from itstrace.readers.perfdata.contents import Record

if TYPE_CHECKING:
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
    # Records are whole words, by the kernel and by perf; where one is not, the chain is followed anew behind it.
    steps = np.ndarray(words, order + "u2", raw, start + 6, (HEADER_BYTES,)).astype(np.uint32) >> 3
    steps[steps == 0] = _NOWHERE
    step = steps.data
    found: list[int] = []
    append = found.append
    at = 0
    while at < words:
        append(at)
        at += step[at]
    starts = np.array(found, np.int64) * HEADER_BYTES + start
    types = np.ndarray(max(len(raw) - 3, 0), order + "u4", raw, 0, (1,))[starts].astype(np.uint32)
    sizes = np.ndarray(max(len(raw) - 1, 0), order + "u2", raw, 0, (1,))[starts + 6].astype(np.int64)
    alone = (types >= TAKEN_ALONE[0]) & np.isin(types, TAKEN_ALONE)
    alone |= (sizes < HEADER_BYTES) | (starts + sizes > len(raw))
    odd = (sizes & 7) != 0
    blocked = False
    taken = len(starts)
    if alone.any():
        taken, blocked = int(np.argmax(alone)), True
    if odd[:taken].any():
        taken, blocked = int(np.argmax(odd)) + 1, False
    end = int(starts[taken - 1] + sizes[taken - 1]) if taken else start
    if not taken and not blocked:
        blocked = True  # less than a header is left
    return Chain(raw, starts[:taken], types[:taken], sizes[:taken], end, blocked)
