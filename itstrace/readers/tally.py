"""What one reading of a capture finds besides its records: counts, losses, damage."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np
import polars as pl

from itstrace.errors import Damage
from itstrace.readers.base import Capture
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


def gaps_frame(gaps: Sequence[Gap], first_ns: int | None, last_ns: int | None) -> pl.DataFrame:
    """Gaps as a frame, bounded by the whole capture's first and last record where their CPU has none.

    Shape: rows of GAPS, by their ends.
    """
    rows = [
        (
            gap.cpu,
            first_ns if gap.from_ns is None else gap.from_ns,
            last_ns if gap.to_ns is None else gap.to_ns,
            # A hostile file may claim more losses than 64 bits hold.
            None if gap.lost is None else min(gap.lost, 2**64 - 1),
        )
        for gap in gaps
    ]
    # Column by column, for polars guesses a type of its own from rows before it looks at the schema's.
    columns = list(zip(*rows, strict=True)) or [()] * len(GAPS)
    series = [
        pl.Series(name, values, dtype=dtype)
        for (name, dtype), values in zip(GAPS.items(), columns, strict=True)
    ]
    return pl.DataFrame(series).sort("to_ns", "cpu")


@dataclass(slots=True)
class Reading:
    """What every whole reading of a capture tells: its span, and where the file is damaged."""

    #: So many places are told one by one.
    most_damage: int = MAX_DAMAGE
    damage: list[Damage] = field(default_factory=list)
    more_damage: int = 0
    first_ns: int | None = None
    last_ns: int | None = None

    def bad(self, offset_bytes: int | None, cpu: int | None, problem: str) -> None:
        """Keep a damaged place; of very many only how many there are."""
        if len(self.damage) < self.most_damage:
            self.damage.append(Damage(offset_bytes, cpu, problem))
        else:
            self.more_damage += 1

    def all_damage(self) -> list[Damage]:
        """Give the damaged places, and how many more there are."""
        if not self.more_damage:
            return self.damage
        return [*self.damage, Damage(None, None, f"{self.more_damage} more places are damaged")]


_Reading = TypeVar("_Reading", bound=Reading)


class ReadThrough(Capture, Generic[_Reading]):
    """A capture that answers what it holds from a whole reading; a reader leaves its own here at the end of `blocks`."""

    _tally: _Reading | None = None

    def span(self) -> tuple[int | None, int | None]:
        """Times of the first and the last record, in ns; None where there is none."""
        tally = self._complete()
        return tally.first_ns, tally.last_ns

    def _complete(self) -> _Reading:
        """The last whole reading; one is made where there was none."""
        if self._tally is None:
            for _ in self.blocks({}):
                pass
        assert self._tally is not None
        return self._tally


@dataclass(slots=True)
class Tally(Reading):
    """Grows with every batch; complete once the last was read."""

    #: event id -> records per CPU
    counts: dict[int, npt.NDArray[np.int64]] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    records: int = 0
    disorder: int = 0

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
        return gaps_frame(self.gaps, self.first_ns, self.last_ns)
