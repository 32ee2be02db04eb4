"""Samples from the order of the file to the order of time.

perf empties the CPUs' buffers in turn, and marks the end of each round: whatever is read after a round was recorded
after everything that the round before it held.

Source: tools/perf/util/ordered-events.c:ordered_events__flush (v6.12)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from itstrace.readers.perfdata.contents import Record

if TYPE_CHECKING:
    from itstrace.readers.payloads import Bytes
    from itstrace.readers.perfdata.samples import Samples
    from itstrace.readers.perfdata.walk import Chain

#: A block has about so many samples: fewer cost more each, more take more memory.
BLOCK_SAMPLES: Final = 1 << 18
#: Without marks of rounds (or between two of them) so many samples wait at most, and so many unpacked bytes; then the
#: earlier half goes on, and what comes too late for it gets the time at which it could still go.
MAX_WAITING, MAX_HELD_BYTES = 1 << 24, 1 << 30


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples that no earlier one can follow, in runs as they were read; in no order yet."""

    parts: list[Samples]


class RoundQueue:
    """Holds samples back until all earlier ones are there."""

    def __init__(
        self,
        file: Bytes,
        *,
        block_samples: int = BLOCK_SAMPLES,
        max_waiting: int = MAX_WAITING,
        max_held_bytes: int = MAX_HELD_BYTES,
    ) -> None:
        self._block_samples = block_samples
        self._max_waiting = max_waiting
        self._max_held_bytes = max_held_bytes
        self._parts: list[Samples] = []
        self._waiting = 0
        self._file = file  # mapped: its bytes are not held
        self._held_bytes = 0
        self._tried = -1
        #: the latest time so far; as it was at the last end of a round; and at the one before: so far all may go
        self._latest = self._at_last_round = self._limit = -1

    def add(self, samples: Samples, chain: Chain) -> None:
        """Take the samples of some records, and the ends of rounds among these."""
        ends = chain.starts[chain.types == Record.FINISHED_ROUND]
        latest = self._latest
        if len(samples):
            if len(ends):
                rising = np.maximum.accumulate(samples.times)
                before = np.searchsorted(samples.records, ends[-2:])
                for count in before.tolist():
                    seen = max(latest, int(rising[count - 1])) if count else latest
                    self._limit, self._at_last_round = self._at_last_round, seen
                latest = max(latest, int(rising[-1]))
            else:
                latest = max(latest, int(samples.times.max()))
            if samples.raw is not self._file and not (self._parts and self._parts[-1].raw is samples.raw):
                self._held_bytes += len(samples.raw)
            self._parts.append(samples)
            self._waiting += len(samples)
        else:
            for _ in range(min(len(ends), 2)):
                self._limit, self._at_last_round = self._at_last_round, latest
        self._latest = latest

    def ready(self) -> Batch | None:
        """Give what may go, where that is worth a block."""
        if self._waiting >= self._block_samples and self._limit != self._tried:
            self._tried = self._limit
            batch = self._upto(self._limit, at_least=self._block_samples // 2)
            if batch is not None:
                return batch
        if self._waiting < self._max_waiting and self._held_bytes < self._max_held_bytes:
            return None
        times = np.concatenate([part.times for part in self._parts])
        middle = int(np.partition(times, len(times) // 2)[len(times) // 2])
        return self._upto(middle, at_least=1)

    def rest(self) -> Batch | None:
        """Give all that is left."""
        parts, self._parts, self._waiting = self._parts, [], 0
        return Batch(parts) if parts else None

    def _upto(self, limit: int, at_least: int) -> Batch | None:
        """Give the samples up to a time, where they are so many."""
        going: list[npt.NDArray[np.bool_]] = [part.times <= limit for part in self._parts]
        if sum(int(np.count_nonzero(mask)) for mask in going) < at_least:
            return None
        batch, left = [], []
        for part, mask in zip(self._parts, going, strict=True):
            if mask.all():
                batch.append(part)
            elif not mask.any():
                left.append(part)
            else:
                batch.append(part.part(mask))
                left.append(part.part(~mask))
        self._parts = left
        # Parts of one piece of unpacked records share it.
        pieces = {id(part.raw): len(part.raw) for part in left if part.raw is not self._file}
        self._held_bytes = sum(pieces.values())
        self._waiting = sum(len(part) for part in left)
        return Batch(batch)
