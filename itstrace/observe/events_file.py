"""A file of the user's own events (`--events FILE`): the form of `events.toml`, with less in it; see docs/events.md."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import polars as pl

from itstrace.errors import UsageError
from itstrace.observe.catalogue import OBSERVATIONS, PROBES, TABLE, Column, Probe
from itstrace.observe.matching import Catalogue, Definition

if TYPE_CHECKING:
    from collections.abc import Iterator

#: More than anybody writes; the built-in table has a tenth of it.
MAX_BYTES: Final = 1 << 18
_EVENT: Final = re.compile(r"(?:[^\s:]+:)?[^\s:]+")
_FIELD: Final = re.compile(r"[^\W\d]\w*(?:\[\d{1,4}\])?")
#: What the built-in table says of a column besides; a copy of it may stand in a user's file, unchanged.
_BUILT_IN_KEYS: Final = ("type", "required", "expected", "narrow")
_PLACE_KEYS: Final = ("function", "at", "arguments", "record", "record_7")
_RANGES: Final[dict[type[pl.DataType], tuple[int, int]]] = {
    pl.UInt64: (0, (1 << 64) - 1), pl.UInt32: (0, (1 << 32) - 1), pl.Int32: (-(1 << 31), (1 << 31) - 1),
}  # fmt: skip
_EXAMPLE: Final = (
    'a table a probe, as [guest_read], with events = ["my_read"] and fields.len = "size"; see docs/events.md'
)


def load_events(path: Path | str) -> Catalogue:
    """The built-in catalogue and what a file says besides.

    Raises: UsageError where the file cannot be read, is no TOML, or says what no probe or column is.
    """
    return _EventsFile(Path(path)).catalogue()


class _EventsFile:
    """One file, while it is being understood."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def catalogue(self) -> Catalogue:
        return Catalogue(tuple(self._definitions(self._toml())), self.path)

    def _wrong(self, problem: str, advice: str | None = None) -> NoReturn:
        raise UsageError(f"--events {self.path}: {problem}", advice=advice)

    def _toml(self) -> dict[str, Any]:
        try:
            with self.path.open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except OSError as error:
            self._wrong(f"cannot be read: {(error.strerror or str(error)).lower()}")
        if len(raw) > MAX_BYTES:
            self._wrong(f"is larger than {MAX_BYTES >> 10} KiB, and so no file of event names", _EXAMPLE)
        try:
            return tomllib.loads(raw.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            self._wrong(f"is no text in UTF-8 (byte {error.start})", _EXAMPLE)
        except tomllib.TOMLDecodeError as error:
            self._wrong(f"is no TOML: {error}", _EXAMPLE)
        except (RecursionError, ValueError) as error:  # nested too deeply; a number of too many digits
            self._wrong(f"is no TOML that can be read: {error}", _EXAMPLE)

    def _definitions(self, document: dict[str, Any]) -> Iterator[Definition]:
        for name, said in document.items():
            if name not in PROBES:
                self._no_probe(name)
            tables = said if isinstance(said, list) else [said]
            if sum(isinstance(table, dict) and "events" not in table for table in tables) > 1:
                self._wrong(
                    f"[[{name}]]: only one of several tables of a probe can be without events",
                    "name the events that each is for",
                )
            for number, table in enumerate(tables):
                where = f"[{name}]" if len(tables) == 1 else f"[[{name}]] number {number + 1}"
                if not isinstance(table, dict):
                    self._wrong(f"{name} must be a table, not {_what(said)}", _EXAMPLE)
                yield self._definition(PROBES[name], where, table)

    def _no_probe(self, name: str) -> NoReturn:
        owner = next((probe for probe in PROBES.values() if name in (*probe.events, probe.function)), None)
        made_of = next((one for one in OBSERVATIONS if one.name == name.upper()), None)
        near = get_close_matches(name, PROBES, 3)
        if owner is not None:
            advice = f"[{owner.name}], the probe of {owner.kernel}"
        elif made_of is not None:
            probes = dict.fromkeys(probe for group in made_of.fed_by for probe in group)
            advice = f"{made_of.name} is an observation; its probes are {', '.join(probes)}"
        elif near:
            advice = " or ".join(f"[{each}]" for each in near)
        else:
            advice = f"one of {', '.join(PROBES)}"
        self._wrong(f"[{name}]: there is no such probe", advice)

    def _definition(self, probe: Probe, where: str, table: dict[str, Any]) -> Definition:
        for key, said in table.items():
            if key in _PLACE_KEYS:
                self._unchanged(where, key, said, TABLE.get(probe.name, {}).get(key))
            elif key not in ("events", "fields"):
                near = get_close_matches(key, ("events", "fields"), 1)
                is_column = any(key == column.name for column in probe.columns)
                advice = (
                    f"fields.{key}"
                    if is_column
                    else near[0]
                    if near
                    else "events and fields are what it may have"
                )
                self._wrong(f"{where} {key}: there is no such key", advice)
        if not table.keys() & {"events", "fields"}:
            self._wrong(f"{where} says nothing", 'events = ["my_event"]')
        events = (
            self._words(f"{where} events", table["events"], _EVENT, "my_event or group:my_event")
            if "events" in table
            else ()
        )
        fields = table.get("fields", {})
        if not isinstance(fields, dict):
            self._wrong(f"{where} fields must be a table, not {_what(fields)}", 'fields.len = "size"')
        constants: dict[str, int] = {}
        columns = {column.name: column for column in probe.columns}
        for name, said in fields.items():
            if name not in columns:
                self._no_column(probe, where, name)
            column = columns[name]
            if isinstance(said, int) and not isinstance(said, bool):
                constants[name] = self._constant(f"{where} fields.{name}", column, said)
            else:
                columns[name] = self._column(probe, f"{where} fields.{name}", column, said)
        return Definition(replace(probe, columns=tuple(columns.values())), events, constants)

    def _no_column(self, probe: Probe, where: str, name: str) -> NoReturn:
        owner = next((column for column in probe.columns if name in column.fields), None)
        near = get_close_matches(name, [column.name for column in probe.columns], 3)
        if owner is not None:
            advice = f'fields.{owner.name} = "{name}": the column comes first, then the field of the event'
        elif near:
            advice = " or ".join(f"fields.{each}" for each in near)
        elif probe.columns:
            advice = f"one of {', '.join(column.name for column in probe.columns)}"
        else:
            advice = "leave fields out: nothing of this event is read but its time and task"
        self._wrong(f"{where} fields.{name}: {probe.name} has no such column", advice)

    def _column(self, probe: Probe, where: str, column: Column, said: object) -> Column:
        if isinstance(said, dict):
            for key, value in said.items():
                if key in _BUILT_IN_KEYS:
                    self._unchanged(
                        where,
                        key,
                        value,
                        TABLE.get(probe.name, {}).get("fields", {}).get(column.name, {}).get(key),
                    )
                elif key != "names":
                    self._wrong(f"{where} {key}: there is no such key", "names")
            if "names" not in said:
                self._wrong(f"{where} names no field", f'fields.{column.name} = "size"')
            said = said["names"]
        elif not isinstance(said, (str, list)):
            self._wrong(
                f"{where} must be the name of a field, a list of names or a number, not {_what(said)}",
                f'fields.{column.name} = "size"',
            )
        names = self._words(where, said, _FIELD, "size or words[0]")
        return replace(column, fields=tuple(dict.fromkeys((*names, *column.fields))))

    def _constant(self, where: str, column: Column, value: int) -> int:
        if not column.dtype.is_integer():
            self._wrong(
                f"{where} is text and cannot be {value}", f'fields.{column.name} = "{column.fields[0]}"'
            )
        low, high = _RANGES[type(column.dtype)]
        if not low <= value <= high:
            self._wrong(f"{where} cannot be {value}", f"a number from {low} to {high}")
        return value

    def _words(self, where: str, said: object, form: re.Pattern[str], like: str) -> tuple[str, ...]:
        """A name, or a list of names."""
        words = [said] if isinstance(said, str) else said
        if not isinstance(words, list):
            self._wrong(f"{where} must be a name or a list of names, not {_what(said)}", like)
        if not words:
            self._wrong(f"{where} is empty", like)
        for word in words:
            if not isinstance(word, str):
                self._wrong(f"{where} must hold names, not {_what(word)}", like)
            if not form.fullmatch(word):
                self._wrong(f"{where}: {word!r} is no name", like)
        return tuple(words)

    def _unchanged(self, where: str, key: str, said: object, built_in: object) -> None:
        if said != built_in:
            what = "not said there" if built_in is None else f"{built_in!r} there"
            self._wrong(f"{where} {key} is for itstrace's own table to say ({what})", f"leave {key} out")


def _what(said: object) -> str:
    if isinstance(said, bool):
        return "true" if said else "false"
    kinds = {str: "a text", int: "a number", float: "a fraction", list: "a list", dict: "a table"}
    return kinds.get(type(said), "a date or time")
