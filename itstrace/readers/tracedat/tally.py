"""What the reading of ring buffers finds besides its records: where their pages lost some."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from itstrace.readers.tally import Gap, Tally
from itstrace.readers.tracedat.pages import NONE_LOST, UNKNOWN_LOST, add_lost

if TYPE_CHECKING:
    from itstrace.readers.tracedat.pages import CpuPages
    from itstrace.readers.tracedat.ring import Records
    from itstrace.readers.tracedat.windows import Batch


class RingTally(Tally):
    """A tally that knows what pages say of losses before them."""

    def note_losses(
        self, batch: Batch, records: Records, times: npt.NDArray[np.int64], bounds: list[int]
    ) -> None:
        """Keep where records are missing: before pages that say so, and behind a record that is none."""
        ends = np.cumsum(records.per_page)
        marked = (batch.lost != NONE_LOST) & batch.fresh
        broken = records.broken[batch.fresh[records.broken]]
        for i, stream in enumerate(batch.streams):
            first, last = batch.bounds[i], batch.bounds[i + 1]
            begin, end = bounds[i], bounds[i + 1]
            # page -> what is missing before its first record
            losses: dict[int, int] = {}
            if stream.lost_behind != NONE_LOST:
                losses[first + int(np.argmax(batch.fresh[first:last]))] = stream.lost_behind
            for page in (first + np.flatnonzero(marked[first:last])).tolist():
                losses[page] = add_lost(losses.get(page, NONE_LOST), int(batch.lost[page]))
            for page in broken[(broken >= first) & (broken < last)].tolist():
                losses[page + 1] = UNKNOWN_LOST
                problem = f"a record runs over its page (stamp {batch.stamps[page]}); the page ends before it"
                self.bad(int(batch.file_offset_bytes[page]), stream.cpu, problem)
            stream.lost_behind = NONE_LOST
            for page in sorted(losses):
                at = int(ends[page - 1]) if page else 0
                stream.lost_behind = add_lost(stream.lost_behind, losses[page])
                if at < end:
                    before = int(times[at - 1]) if at > begin else stream.last_record_ns
                    self._note_gap(stream, before, int(times[at]))
            if end > begin:
                stream.last_record_ns = int(times[end - 1])

    def finish(self, streams: list[CpuPages]) -> None:
        """Keep what is missing behind the last records."""
        for stream in streams:
            stream.lost_behind = stream.lost_at_end
            if stream.lost_behind != NONE_LOST:
                self._note_gap(stream, stream.last_record_ns, None)

    def _note_gap(self, stream: CpuPages, from_ns: int | None, to_ns: int | None) -> None:
        lost = None if stream.lost_behind == UNKNOWN_LOST else stream.lost_behind
        self.gaps.append(Gap(stream.cpu, from_ns, to_ns, lost))
        stream.lost_behind = NONE_LOST
