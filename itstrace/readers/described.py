"""What trace.dat and perf.data have in common as captures: events described in the file, and a tally of each reading."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from itstrace.readers.base import Capture, frame_schema, selection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from itstrace.errors import Damage
    from itstrace.readers.base import Block, CaptureInfo, EventField, EventFormat, Wanted
    from itstrace.readers.tally import Tally


@dataclass(frozen=True, slots=True)
class Choice:
    """One event that was asked for, with the fields to decode."""

    event: EventFormat
    fields: tuple[EventField, ...]

    def empty(self) -> pl.DataFrame:
        """Give a frame of the right columns without rows."""
        return pl.DataFrame(schema=frame_schema(self.event, self.fields))


class DescribedCapture(Capture):
    """A capture whose file describes its events; the tally of a whole reading answers what there is of them."""

    _path: Path
    _info: CaptureInfo
    _formats: dict[str, EventFormat]
    #: found on opening
    _damage: list[Damage]
    #: of the last whole reading
    _tally: Tally | None = None

    @property
    def info(self) -> CaptureInfo:
        """What the capture says about itself."""
        return self._info

    @property
    def formats(self) -> Mapping[str, EventFormat]:
        """The event types that the capture describes, by full name."""
        return self._formats

    def span(self) -> tuple[int | None, int | None]:
        """Times of the first and the last record, in ns; None where there is none."""
        tally = self._complete()
        return tally.first_ns, tally.last_ns

    def gaps(self) -> pl.DataFrame:
        """Stretches in which records were lost, from the record before to the record after on that CPU.

        Where a CPU has no record on one side, the capture's own first or last record bounds the stretch.

        Shape: rows of GAPS
        """
        return self._complete().gaps_frame()

    def damage(self) -> list[Damage]:
        """Where the file is cut short or damaged."""
        return self._damage + self._complete().all_damage()

    def disorder(self) -> int:
        """How many records had times that ran backwards where they must not; they got the time before them."""
        return self._complete().disorder

    def blocks(self, wanted: Wanted) -> Iterator[Block]:
        """Stream the events asked for, in order of time; names unknown to the capture are passed over.

        Raises: UsageError where an event has no field of a name asked for.
        """
        choose = selection(wanted, self._path)
        chosen = [(event, choose(event)) for event in self._formats.values()]
        return self._blocks([Choice(event, fields) for event, fields in chosen if fields is not None])

    @abstractmethod
    def _blocks(self, choices: list[Choice]) -> Iterator[Block]:
        """Read the file through; at its end `_tally` is that reading's."""

    def _complete(self) -> Tally:
        if self._tally is None:
            for _ in self.blocks({}):
                pass
        assert self._tally is not None
        return self._tally
