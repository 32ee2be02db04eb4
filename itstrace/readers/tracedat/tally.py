"""What one reading of a capture finds besides its records: counts, losses, damage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from itstrace.errors import Damage
from itstrace.readers.tracedat.pages import NONE_LOST, UNKNOWN_LOST, add_lost

if TYPE_CHECKING:
    from itstrace.readers.tracedat.pages import CpuPages
    from itstrace.readers.tracedat.ring import Records
    from itstrace.readers.tracedat.windows import Batch

#: So many damaged places are told one by one; of the rest only the number.
MAX_DAMAGE = 1000


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of one CPU's buffer with records lost; None where nothing was recorded on that side."""

    cpu: int
    from_ns: int | None
    to_ns: int | None
    lost: int | None


@dataclass(slots=True)
class Tally:
    """Grows with every batch; complete once the last was read."""

    #: event id -> records per CPU
    counts: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)
    more_damage: int = 0
    records: int = 0
    disorder: int = 0
    first_ns: int | None = None
    last_ns: int | None = None

    def bad(self, offset_bytes: int | None, cpu: int | None, problem: str) -> None:
        """Keep a damaged place."""
        if len(self.damage) < MAX_DAMAGE:
            self.damage.append(Damage(offset_bytes, cpu, problem))
        else:
            self.more_damage += 1

    def count(self, event_ids: npt.NDArray[np.uint16], cpu: int) -> None:
        """Count one CPU's records."""
        found = np.bincount(event_ids)
        for event_id in np.flatnonzero(found).tolist():
            per_cpu = self.counts.get(event_id)
            if per_cpu is None or len(per_cpu) <= cpu:
                grown = np.zeros(cpu + 1, np.int64)
                if per_cpu is not None:
                    grown[: len(per_cpu)] = per_cpu
                self.counts[event_id] = per_cpu = grown
            per_cpu[cpu] += found[event_id]

    def note_span(self, times: npt.NDArray[np.int64]) -> None:
        """Count the records of a span of time (sorted within each CPU only)."""
        self.records += len(times)
        if len(times):
            self.first_ns = int(times.min()) if self.first_ns is None else self.first_ns
            self.last_ns = int(times.max())

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

    def gap_rows(self) -> list[tuple[int, int | None, int | None, int | None]]:
        """Give the gaps, bounded by the whole capture's first and last record where the CPU has none."""
        rows = []
        for gap in self.gaps:
            from_ns = self.first_ns if gap.from_ns is None else gap.from_ns
            to_ns = self.last_ns if gap.to_ns is None else gap.to_ns
            rows.append((gap.cpu, from_ns, to_ns, gap.lost))
        return rows
