"""What one reading of a capture finds besides its records: counts, losses, damage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from itstrace.errors import Damage
from itstrace.schemas import COUNTS, GAPS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

#: So many damaged places are told one by one; of the rest only the number.
MAX_DAMAGE = 1000


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of one CPU's buffer with records lost; None where nothing was recorded on that side."""

    cpu: int
    from_ns: int | None
    to_ns: int | None
    lost: int | None


def gaps_frame(rows: Sequence[tuple[int, int | None, int | None, int | None]]) -> pl.DataFrame:
    """Gaps (CPU, from, to, how many lost) as a frame: a hostile file may claim more losses than 64 bits hold.

    Shape: rows of GAPS, by their ends.
    """
    # Column by column, for polars guesses a type of its own from rows before it looks at the schema's.
    bounded = [(*row[:3], None if row[3] is None else min(row[3], 2**64 - 1)) for row in rows]
    columns = list(zip(*bounded, strict=True)) or [()] * len(GAPS)
    series = [
        pl.Series(name, values, dtype=dtype)
        for (name, dtype), values in zip(GAPS.items(), columns, strict=True)
    ]
    return pl.DataFrame(series).sort("to_ns", "cpu")


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

    def count(self, event_ids: npt.NDArray[np.integer], cpu: int) -> None:
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

    def counts_frame(self, names: Mapping[int, str]) -> pl.DataFrame:
        """Give the records per event and CPU, given the events' names. Shape: rows of COUNTS."""
        rows: list[tuple[str, int, int]] = []
        for number, per_cpu in self.counts.items():
            name = names.get(number, f"unknown:{number}")
            rows.extend((name, cpu, int(per_cpu[cpu])) for cpu in per_cpu.nonzero()[0].tolist())
        return pl.DataFrame(rows, schema=COUNTS, orient="row").sort("event", "cpu")

    def gaps_frame(self) -> pl.DataFrame:
        """Give the gaps, bounded by the whole capture's first and last record where the CPU has none.

        Shape: rows of GAPS, by their ends.
        """
        rows = []
        for gap in self.gaps:
            from_ns = self.first_ns if gap.from_ns is None else gap.from_ns
            to_ns = self.last_ns if gap.to_ns is None else gap.to_ns
            rows.append((gap.cpu, from_ns, to_ns, gap.lost))
        return gaps_frame(rows)

    def all_damage(self) -> list[Damage]:
        """Give the damaged places, and how many more there are."""
        if not self.more_damage:
            return self.damage
        return [*self.damage, Damage(None, None, f"{self.more_damage} more places are damaged")]
