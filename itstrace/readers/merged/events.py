"""One description of every event out of those that the parts have, and frames of one kind out of theirs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import polars as pl
from polars.exceptions import PolarsError

from itstrace.readers.base import HEAD, column_name, frame_schema

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from itstrace.readers.base import EventField, EventFormat, Selection


@dataclass(slots=True)
class Events:
    """Every event of all parts: `formats` as the merged capture has them, `names[part]` from a part's name to that."""

    formats: dict[str, EventFormat] = field(default_factory=dict)
    names: list[dict[str, str]] = field(default_factory=list)


def combine(described: Sequence[Mapping[str, EventFormat]]) -> Events:
    """Find which events of the parts are the same, and describe each with the fields that any part gives it.

    An event that text tells without its system is that of the others, where only one has the name.
    """
    systems: dict[str, set[str]] = {}
    for formats in described:
        for event in formats.values():
            if event.system:
                systems.setdefault(event.name, set()).add(event.full_name)
    events = Events()
    for formats in described:
        names = {}
        for event in formats.values():
            others = systems.get(event.name, set())
            full_name = next(iter(others)) if not event.system and len(others) == 1 else event.full_name
            names[event.full_name] = full_name
            known = events.formats.get(full_name)
            events.formats[full_name] = event if known is None else _both(known, event)
        events.names.append(names)
    return events


def _both(one: EventFormat, other: EventFormat) -> EventFormat:
    """An event with the fields of two descriptions; the kernel's own goes before what was learnt from text."""
    first, second = (other, one) if other.print_fmt and not one.print_fmt else (one, other)
    known = {each.name for each in first.fields}
    more = tuple(each for each in second.fields if each.name not in known)
    return replace(first, system=first.system or second.system, fields=first.fields + more)


class Chooser:
    """What was asked for, said to each part in its own words."""

    def __init__(self, events: Events, choose: Selection) -> None:
        self._events = events
        #: the chosen fields of every event asked for, as the merged capture has them
        self.chosen: dict[str, tuple[EventField, ...]] = {}
        for full_name, event in events.formats.items():
            fields = choose(event)
            if fields is not None:
                self.chosen[full_name] = fields

    def of_part(self, part: int) -> Selection:
        """The selection for one part."""
        names = self._events.names[part]

        def choose(event: EventFormat) -> tuple[EventField, ...] | None:
            fields = self.chosen.get(names.get(event.full_name, ""))
            if fields is None:
                return None
            wanted = {each.name for each in fields}
            return tuple(each for each in event.fields if each.name in wanted)

        return choose

    def rename(self, part: int, own_name: str) -> str:
        """The merged capture's name of an event of one part."""
        return self._events.names[part][own_name]

    def conform(self, full_name: str, frame: pl.DataFrame) -> pl.DataFrame:
        """A part's frame with the columns of the merged capture."""
        schema = frame_schema(self._events.formats[full_name], self.chosen[full_name])
        if list(frame.schema.items()) == list(schema.items()):
            return frame
        columns = [pl.col(name).cast(dtype) for name, dtype in HEAD.items()]
        for each in self.chosen[full_name]:
            name = column_name(each.name)
            columns.append(_cast(name, frame.schema.get(name), each.dtype))
        return frame.select(columns)


def _cast(name: str, have: pl.DataType | None, want: pl.DataType) -> pl.Expr:
    """A column as another part has it: text tells less of a number's width and sign than the kernel's description."""
    if have is None:
        return pl.lit(None, want).alias(name)
    if have == want:
        return pl.col(name)
    if have.is_integer() and want.is_integer():
        return pl.col(name).cast(want, strict=False, wrap_numerical=True)
    try:
        pl.DataFrame(schema={name: have}).select(pl.col(name).cast(want, strict=False))
    except PolarsError:  # no way leads from one to the other
        return pl.lit(None, want).alias(name)
    return pl.col(name).cast(want, strict=False)
