"""Which event feeds which probe, and which of its fields gives which column.

Three things make an event a probe's: a file of the user's that says so, the name that our own definitions give it,
or that it is named after the probe's function; the first of these that holds counts. Whatever the way, an event
must have all that the probe cannot do without.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from enum import IntEnum
from typing import TYPE_CHECKING

import polars as pl

from itstrace.observe.catalogue import PROBES, Column, Place, Probe
from itstrace.observe.recognise import own_fields, standing, unnamed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from itstrace.readers.base import EventField, EventFormat

_ELEMENT = re.compile(r"(?P<array>[^\[\]]+)\[(?P<index>\d+)\]")
#: Of the names that a column's field may have, how many a sentence has room for.
_NAMES_SHOWN = 4
#: For how many events that a capture has not got a likeness is looked for: each costs a look at all others.
_SUGGESTED = 8


class How(IntEnum):
    """By what an event was found to feed a probe, the surest first."""

    FILE = 0
    NAME = 1
    FUNCTION = 2

    @property
    def words(self) -> str:
        """For a reader of `info`."""
        return ("by --events", "by name", "by function name")[self]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a column comes from: a field of the event, an element of an array field, or always the same value."""

    field: str | None
    index: int | None = None
    constant: int | None = None

    def __str__(self) -> str:
        if self.field is None:
            return str(self.constant)
        return self.field if self.index is None else f"{self.field}[{self.index}]"


@dataclass(frozen=True, slots=True)
class Definition:
    """Events that record a probe, and the fields under which they give its columns.

    `constants`: what a column always is, for a probe that fires for nothing else. `events` may be empty in a
    user's file: the fields are those of the events that are known without.
    """

    probe: Probe
    events: tuple[str, ...]
    constants: Mapping[str, int] = field(default_factory=dict)

    def sources(self, event: EventFormat, how: How) -> dict[str, Source]:
        """What gives each column; the columns that nothing gives are not in it."""
        found: dict[str, Source] = {}
        fields = {each.name: each for each in event.fields}
        for column in self.probe.columns:
            if column.name in self.constants:
                found[column.name] = Source(None, constant=self.constants[column.name])
                continue
            source = next(filter(None, (_source(name, column, fields, how) for name in column.fields)), None)
            if source is not None:
                found[column.name] = source
        arguments = self.probe.arguments
        if not found and how is How.FUNCTION and arguments and len(arguments) == unnamed(event):
            values = dict(zip(arguments, own_fields(event), strict=True))
            for column in self.probe.columns:
                if column.name in values:
                    source = _source(values[column.name], column, fields, how)
                    found |= {} if source is None else {column.name: source}
        return found

    def lacks(self, sources: Mapping[str, Source]) -> tuple[Column, ...]:
        """Columns that the probe cannot do without and nothing gives."""
        return tuple(each for each in self.probe.columns if each.needed and each.name not in sources)


def _source(name: str, column: Column, fields: Mapping[str, EventField], how: How) -> Source | None:
    """A field, or an element of one, if the event has it and it can hold the column."""
    element = _ELEMENT.fullmatch(name)
    if element is None:
        known = fields.get(name)
        if known is None or not _can_hold(column, known.dtype):
            return None
        if how is How.FUNCTION and column.narrow and known.dtype == pl.UInt64():
            return None
        return Source(name)
    known, index = fields.get(element["array"]), int(element["index"])
    if known is None or not isinstance(known.dtype, (pl.Array, pl.List)):
        return None
    if isinstance(known.dtype, pl.Array) and index >= known.dtype.size:
        return None
    inner = known.dtype.inner
    return Source(element["array"], index) if isinstance(inner, pl.DataType) and inner.is_integer() else None


def _can_hold(column: Column, dtype: pl.DataType) -> bool:
    return column.dtype == pl.String() or dtype.is_numeric() or dtype == pl.Boolean()


@dataclass(frozen=True, slots=True)
class Match:
    """One event that feeds a probe."""

    probe: Probe
    event: str
    how: How
    #: Its place among the events that were found so, the best first.
    rank: tuple[int, int]
    sources: Mapping[str, Source]


class Catalogue:
    """The built-in probes, and what a user's file says besides."""

    def __init__(self, own: tuple[Definition, ...] = (), path: Path | None = None) -> None:
        self.path = path
        self.own = tuple(definition for definition in own if definition.events)
        fields_only = {definition.probe.name: definition for definition in own if not definition.events}
        self.known = {
            name: Definition(probe, probe.events)
            if name not in fields_only
            else replace(fields_only[name], events=probe.events)
            for name, probe in PROBES.items()
        }
        self._own_names, self._names = _Names(self.own), _Names(self.known.values())
        self._by_function: dict[str, list[Definition]] = {}
        for definition in self.known.values():
            if definition.probe.place != Place.TRACEPOINT:
                self._by_function.setdefault(definition.probe.function, []).append(definition)

    def matches(self, event: EventFormat) -> list[Match]:
        """The probes that an event feeds.

        An event is known by its full name, or by its bare name in any group (dynamic events may stand in any);
        text may tell no group at all.
        """
        return [
            Match(definition.probe, event.full_name, how, rank, sources)
            for definition, how, rank in self.claims(event)
            for sources in [definition.sources(event, how)]
            if not definition.lacks(sources)
        ]

    def claims(self, event: EventFormat) -> Iterator[tuple[Definition, How, tuple[int, int]]]:
        """The definitions that claim an event and their rank, whether or not it has what they need; one a probe.

        An event that the user's file names is what the file says, and nothing else.
        """
        own = self._own_names.of(event)
        if own:
            best: dict[str, tuple[Definition, tuple[int, int]]] = {}
            for definition, rank in sorted(own, key=lambda each: self._missing(each[0], event)):
                best.setdefault(definition.probe.name, (definition, rank))
            yield from ((definition, How.FILE, rank) for definition, rank in best.values())
            return
        named = self._names.of(event)
        if named:
            yield from ((definition, How.NAME, (0, rank[1])) for definition, rank in named)
        else:
            yield from ((definition, How.FUNCTION, (0, 0)) for definition in self._standing_in(event))

    @staticmethod
    def _missing(definition: Definition, event: EventFormat, how: How = How.FILE) -> int:
        return len(definition.lacks(definition.sources(event, how)))

    def _standing_in(self, event: EventFormat) -> list[Definition]:
        """The definitions of the place of KVM's code that an event's name, and what the kernel says of it, tell."""
        stands = standing(event)
        if stands is None:
            return []
        at: dict[Place, list[Definition]] = {place: [] for place in Place}
        for definition in self._by_function[stands.function]:
            at[definition.probe.place].append(definition)

        def fitting(place: Place) -> list[Definition]:
            return [each for each in at[place] if not self._missing(each, event, How.FUNCTION)]

        if stands.place is not Place.RETURN and fitting(Place.INSIDE):
            # What only the inside of a function can tell is told there, whatever the event's name says.
            return at[Place.INSIDE]
        if stands.place is not None:
            return at[stands.place]
        returns = [
            each
            for each in fitting(Place.RETURN)
            # A value that was returned says where the event stands, as does that there is nowhere else to be.
            if not at[Place.ENTRY] or "ret" in each.sources(event, How.FUNCTION)
        ]
        # What was read can be told only when it was read.
        told = [each for each in fitting(Place.RETURN) if any(one.expected for one in each.probe.columns)]
        return told or fitting(Place.ENTRY) or returns or at[Place.ENTRY] or at[Place.RETURN]

    def find(self, formats: Mapping[str, EventFormat]) -> dict[str, list[Match]]:
        """Which events of a capture may feed which probe, the best first."""
        return best_first(match for event in formats.values() for match in self.matches(event))

    def remarks(self, formats: Mapping[str, EventFormat]) -> list[str]:
        """What a user's file asks for and the capture does not give, a sentence each."""
        found, suggested = [], 0
        by_name: dict[str, list[EventFormat]] = {}
        for event in formats.values():
            for name in {event.full_name, event.name}:
                by_name.setdefault(name, []).append(event)
        for definition in self.own:
            for name in definition.events:
                bare = name.rpartition(":")[2]
                events = by_name.get(name) or [each for each in by_name.get(bare, ()) if not each.system]
                if not events:
                    suggested += 1
                    near = get_close_matches(name, by_name, 1) if suggested <= _SUGGESTED else []
                    like = f"; there is {near[0]}" if near else ""
                    found.append(f"[{definition.probe.name}] {name}: the capture has no such event{like}")
                for event in events:
                    lacking = definition.lacks(definition.sources(event, How.FILE))
                    others = (match.probe.name == definition.probe.name for match in self.matches(event))
                    if lacking and not any(others):
                        found.append(
                            f"[{definition.probe.name}] {event.full_name} has no field for "
                            f"{', '.join(looked_for(column, event) for column in lacking)}; "
                            f"it has {', '.join(own_fields(event)) or 'none at all'}"
                        )
        return found


def best_first(matches: Iterable[Match]) -> dict[str, list[Match]]:
    """Matches by probe, in the order of the table; of each probe the best first."""
    found: dict[str, list[Match]] = {}
    for match in matches:
        found.setdefault(match.probe.name, []).append(match)
    for several in found.values():
        several.sort(key=lambda match: (match.how, match.rank, -len(match.sources)))
    return {name: found[name] for name in PROBES if name in found}


def looked_for(column: Column, event: EventFormat) -> str:
    """A column that an event does not give: under which names it was looked for, or why such a field does not do."""
    unfit = next((each for each in event.fields if each.name in column.fields), None)
    if unfit is not None:
        why = "may be a pointer" if _can_hold(column, unfit.dtype) else "is no number"
        return f"{column.name} ({unfit.name}, a {unfit.c_type}, {why})"
    if column.fields == (column.name,):
        return column.name
    more = ", ..." if len(column.fields) > _NAMES_SHOWN else ""
    return f"{column.name} (looked for {', '.join(column.fields[:_NAMES_SHOWN])}{more})"


class _Names:
    """Definitions by the events that they name, with or without a group."""

    def __init__(self, definitions: Iterable[Definition]) -> None:
        self._definitions = tuple(definitions)
        self._exact: dict[str, list[tuple[int, int]]] = {}
        self._bare: dict[str, list[tuple[int, int]]] = {}
        for number, definition in enumerate(self._definitions):
            for place, name in enumerate(definition.events):
                self._exact.setdefault(name, []).append((number, place))
                self._bare.setdefault(name.rpartition(":")[2], []).append((number, place))

    def of(self, event: EventFormat) -> list[tuple[Definition, tuple[int, int]]]:
        """Definitions that name an event; which of them each is, and at which place it does."""
        if event.system:
            ranks = [*self._exact.get(event.full_name, ()), *self._exact.get(event.name, ())]
        else:
            ranks = self._bare.get(event.name, [])
        first: dict[int, int] = {}
        for number, place in sorted(ranks):
            first.setdefault(number, place)
        return [(self._definitions[number], (number, place)) for number, place in first.items()]


#: What itstrace understands without a file.
BUILT_IN = Catalogue()
