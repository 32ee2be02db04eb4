"""What trace.dat and perf.data have in common as captures: events described in the file, and a tally of each reading."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import polars as pl

from itstrace.errors import Damage
from itstrace.readers.base import frame_schema, selection
from itstrace.readers.tally import ReadThrough, Tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy.typing as npt

    from itstrace.readers.base import Block, CaptureInfo, EventField, EventFormat, Wanted


@dataclass(frozen=True, slots=True)
class Choice:
    """One event that was asked for, with the fields to decode."""

    event: EventFormat
    fields: tuple[EventField, ...]

    def empty(self) -> pl.DataFrame:
        """Give a frame of the right columns without rows."""
        return pl.DataFrame(schema=frame_schema(self.event, self.fields))


class Choices:
    """What was asked for, as numbers by which records are told apart: 1 and up, 0 for all that nobody asked for."""

    def __init__(self, choices: list[Choice], event_ids: int) -> None:
        """`event_ids`: how many there may be."""
        self._choices = [(choice, choice.empty()) for choice in choices]
        #: event id -> number of its choice
        self._numbers = np.zeros(event_ids, np.uint16)
        for number, choice in enumerate(choices, 1):
            self._numbers[choice.event.event_id] = number

    def __bool__(self) -> bool:
        return bool(self._choices)

    def block(
        self,
        event_ids: npt.NDArray[np.integer],
        decode: Callable[[Choice, npt.NDArray[np.int64]], pl.DataFrame],
    ) -> Block:
        """Make a block of records in order of time, given their events; `decode` is given the ranks of one choice's."""
        numbers = self._numbers[event_ids]
        chosen = np.flatnonzero(numbers)
        by_number = chosen[np.argsort(numbers[chosen], kind="stable")]
        ends = np.cumsum(np.bincount(numbers[chosen], minlength=len(self._choices) + 1))
        return {
            choice.event.full_name: decode(choice, by_number[begin:end]) if end > begin else empty
            for (choice, empty), (begin, end) in zip(self._choices, pairwise(ends.tolist()), strict=True)
        }


class DescribedCapture(ReadThrough[Tally]):
    """A capture whose file describes its events; the tally of a whole reading answers what there is of them."""

    _path: Path
    _info: CaptureInfo
    _formats: dict[str, EventFormat]
    #: found on opening
    _damage: list[Damage]
    #: how its records can run backwards in time, and what was done about it
    _backwards: ClassVar[str]

    @property
    def info(self) -> CaptureInfo:
        """What the capture says about itself."""
        return self._info

    @property
    def formats(self) -> Mapping[str, EventFormat]:
        """The event types that the capture describes, by full name."""
        return self._formats

    def gaps(self) -> pl.DataFrame:
        """Stretches in which records were lost, from the record before to the record after on that CPU.

        Where a CPU has no record on one side, the capture's own first or last record bounds the stretch.

        Shape: rows of GAPS
        """
        return self._complete().gaps_frame()

    def damage(self) -> list[Damage]:
        """Where the file is cut short or damaged, and whether times ran backwards in it."""
        found = self._damage + self._complete().all_damage()
        if count := self.disorder():
            found.append(Damage(None, None, f"{count:,} {self._backwards}", disorder=True))
        return found

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
