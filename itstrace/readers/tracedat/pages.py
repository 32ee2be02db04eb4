"""One CPU's pages in the order of the file, checked and brought in piece by piece.

Pages of a CPU are ordered by time, and the stamp in a page's header is the time of its first record. That is
all that is needed to cut a capture into spans of time without decoding it, see windows.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from itstrace.readers.tracedat.clock import Clock, Stamps, Times

#: `lost` of a page: nothing is missing before it, or something without a count. Else the count.
NONE_LOST, UNKNOWN_LOST = 0, -1
#: A lone page whose stamp is off by more than this from its neighbours' is damaged, not merely disordered.
OUTLIER_NS = 1_000_000_000
DAWN, FOREVER = -(1 << 63), (1 << 63) - 1

Bytes = npt.NDArray[np.uint8]
#: Takes in a damaged place: byte offset in the file, CPU, problem.
Bad = Callable[[int | None, int | None, str], None]


def add_lost(one: int, other: int) -> int:
    """Add two numbers of lost records, of which each may be unknown."""
    return UNKNOWN_LOST if UNKNOWN_LOST in (one, other) else one + other


@dataclass(slots=True)
class Run:
    """Some pages that lie in `raw` at the byte offsets `starts`."""

    raw: Bytes
    starts: npt.NDArray[np.int64]
    #: byte offset within `raw` at which a page's records end
    ends: npt.NDArray[np.int64]
    #: as they stand in the page headers; and converted, never falling
    stamps: Stamps
    floor_ns: Times
    lost: npt.NDArray[np.int64]
    #: of the page, or of the compressed chunk that holds it
    file_offset_bytes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    def part(self, which: slice | npt.NDArray[np.intp]) -> Run:
        """Give some of the pages."""
        return Run(
            self.raw,
            self.starts[which],
            self.ends[which],
            self.stamps[which],
            self.floor_ns[which],
            self.lost[which],
            self.file_offset_bytes[which],
        )


@dataclass(slots=True)
class CpuPages:
    """The pages of one CPU of one buffer, between the file and the batches.

    `runs` holds what was loaded and is not used up. The newest page waits apart: only with the next one can
    be told whether its stamp is damaged.
    """

    cpu: int
    page_bytes: int
    clock: Clock
    bad: Bad
    runs: deque[Run] = field(default_factory=deque)
    #: nothing more will be loaded
    exhausted: bool = False
    #: stamp of the newest page in `runs`, and how many bytes of pages ever came there
    newest_ns: int = DAWN
    loaded_bytes: int = 0
    #: records before this time have been given out; so many pages at the head of `runs` were in an earlier
    #: batch
    low_ns: int = DAWN
    stale: int = 0
    #: time of the last record decoded, and what is known to be missing behind it
    last_record_ns: int | None = None
    lost_behind: int = NONE_LOST
    _waiting: Run | None = None
    #: what is missing before the next page
    _lost_next: int = NONE_LOST

    def publish(self, run: Run) -> None:
        """Take in the next pages of the file."""
        if not len(run):
            return
        if self._waiting is not None:
            self._admit(self._waiting, int(run.floor_ns[0]))
        before = run.part(slice(0, -1))
        if np.all(run.floor_ns[1:] >= run.floor_ns[:-1]) and run.floor_ns[0] >= self.newest_ns:
            if len(before):
                self._append(before)
        else:
            for i in range(len(before)):
                self._admit(before.part(slice(i, i + 1)), int(run.floor_ns[i + 1]))
        self._waiting = run.part(slice(-1, None))

    def mark_lost(self, amount: int = UNKNOWN_LOST) -> None:
        """Remember that records are missing before the next page."""
        if self._waiting is not None:
            self._admit(self._waiting, None)
            self._waiting = None
        self._lost_next = add_lost(self._lost_next, amount)

    def finish(self) -> None:
        """Say that there are no more pages."""
        self.mark_lost(NONE_LOST)
        self.exhausted = True

    @property
    def lost_at_end(self) -> int:
        """What is missing behind the last record, once all has been read."""
        return add_lost(self.lost_behind, self._lost_next)

    def _admit(self, page: Run, next_ns: int | None) -> None:
        """Let the page that waited go, or drop it where its stamp contradicts both neighbours."""
        stamp = int(page.floor_ns[0])
        if next_ns is not None and next_ns >= self.newest_ns:
            ahead = stamp > next_ns + OUTLIER_NS
            behind = self.newest_ns > DAWN and stamp < self.newest_ns - OUTLIER_NS
            if ahead or behind:
                problem = "a page's time stamp is far off those of its neighbours; the page is left out"
                self.bad(int(page.file_offset_bytes[0]), self.cpu, problem)
                self._lost_next = UNKNOWN_LOST
                return
        self._append(page)

    def _append(self, run: Run) -> None:
        run.lost[0] = add_lost(int(run.lost[0]), self._lost_next)
        self._lost_next = NONE_LOST
        run.floor_ns = np.maximum.accumulate(np.maximum(run.floor_ns, self.newest_ns))
        self.newest_ns = int(run.floor_ns[-1])
        self.runs.append(run)
        self.loaded_bytes += len(run) * self.page_bytes
