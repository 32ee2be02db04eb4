"""Events as rows: every field as its own print format says it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import polars as pl
from rich.text import Text

from itstrace.readers.base import column_name
from itstrace.readers.print_fmt import ValueTable, value_tables
from itstrace.report.layout import Column, Sheet, clean, join, table, wrap
from itstrace.report.symbols import hex_fields
from itstrace.report.text import hexa, known, plain
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from itstrace.readers.base import EventField, EventFormat


#: A number this wide may be more than a JSON reader keeps.
_WORD_BYTES: Final = 8


def shown_fields(event: EventFormat) -> list[EventField]:
    """The fields, without the probe's own address: it is the same in every record."""
    return [each for each in event.fields if not each.name.startswith("__probe")] or list(event.fields)


def task(comms: Mapping[int, str], pid: int | None) -> str:
    """`qemu-system-aar-1234`; `<...>` where the capture has no name, as trace-cmd says it; `?` where it has no task."""
    return "?" if pid is None else f"{comms.get(pid, '<...>')}-{pid}"


@dataclass(frozen=True, slots=True)
class Printer:
    """How the records of one event are printed. `comms`: task names by pid; `names`, `hexes`: by field."""

    event: EventFormat
    comms: Mapping[int, str]
    names: Mapping[str, ValueTable]
    hexes: frozenset[str]

    @classmethod
    def of(cls, event: EventFormat, comms: Mapping[int, str]) -> Printer:
        """The printer of one event type, as its print format says its fields."""
        return cls(event, comms, value_tables(event), hex_fields(event))

    def is_hex(self, each: EventField) -> bool:
        """Whether a field is printed in hex: the format says so, or it can only be a pointer."""
        return each.name in self.hexes or each.name.startswith("__probe") or "*" in each.c_type

    def text(self, each: EventField, value: Any) -> str:
        """One value for a person."""
        if isinstance(value, bool) or value is None:
            return known(value)
        if isinstance(value, int):
            if each.name in self.names:
                return self.names[each.name].text(value)
            return hexa(value) if self.is_hex(each) and value >= 0 else str(value)
        if isinstance(value, bytes):
            return value.hex()
        if isinstance(value, list):
            return "{" + ",".join(self.text(each, item) for item in value) + "}"
        return str(value).rstrip("\n")

    def document(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """One record for a program: numbers stay numbers, 64-bit hex is a string, names stand beside."""
        pid = row["pid"]
        found: dict[str, Any] = {
            "time_ns": row["time_ns"],
            "cpu": row["cpu"],
            "pid": pid,
            "comm": self.comms.get(pid),
        }
        for each in self.event.fields:
            column = column_name(each.name)
            found[column] = self._plain(each, row[column])
            if each.name in self.names and isinstance(row[column], int):
                found[f"{column}_name"] = self.names[each.name].text(row[column])
        return found

    def _plain(self, each: EventField, value: Any) -> Any:
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and each.size_bytes == _WORD_BYTES
            and self.is_hex(each)
        ):
            return hexa(value) if value >= 0 else value
        return value.hex() if isinstance(value, bytes) else value

    def task(self, pid: int | None) -> str:
        """`qemu-system-aar-1234`; `<...>` where the capture has no name, as trace-cmd says it."""
        return task(self.comms, pid)

    def cells(self, rows: pl.DataFrame) -> list[tuple[str, ...]]:
        """Each record's time, CPU, task and fields, safe for a terminal; made column by column, for there may be millions."""
        columns = [
            [seconds(time_ns, 9) for time_ns in rows["time_ns"].to_list()],
            _each(rows["cpu"], lambda cpu: f"{cpu:03d}"),
            _each(rows["pid"], self.task),
        ]
        columns += [
            _each(rows[column_name(each.name)], partial(self.text, each)) for each in shown_fields(self.event)
        ]
        return list(zip(*columns, strict=True))

    def columns(self) -> list[Column]:
        """The columns of `cells`."""
        numeric = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
        fields = [
            Column(plain(each.name), right=isinstance(each.dtype, numeric) and each.name not in self.names)
            for each in shown_fields(self.event)
        ]
        return [Column("time", right=True), Column("cpu"), Column("task"), *fields]


def _each(values: pl.Series, say: Callable[[Any], str]) -> list[str]:
    """The text of every value; of those that come again only once."""
    told: dict[Any, str] = {}
    if values.dtype.is_nested():
        return [plain(say(value)) for value in values.to_list()]
    return [told[v] if v in told else told.setdefault(v, plain(say(v))) for v in values.to_list()]


def records(sheet: Sheet, printer: Printer, rows: pl.DataFrame) -> Iterator[Text]:
    """Records as a table where the sheet is wide enough, else one record a paragraph."""
    columns, cells = printer.columns(), printer.cells(rows)
    widths = [max(len(column.title), *(len(row[i]) for row in cells), 0) for i, column in enumerate(columns)]
    if sheet.width is None or sum(widths) + 2 * (len(widths) - 1) <= sheet.width:
        yield from table(sheet, columns, cells, indent="")
        return
    for row in cells:
        yield join(row[0], Text(f" [{row[1]}] ", "dim"), row[2])
        line = Text()
        for column, cell in zip(columns[3:], row[3:], strict=True):
            line.append(f"{column.title}=", "dim").append_text(clean(cell)).append(" ")
        yield from wrap(line, sheet.width, first="    ")


def piped(printer: Printer, blocks: Iterable[pl.DataFrame]) -> Iterator[str]:
    """Records as plain lines, block by block; columns widen where a later block needs it."""
    columns = printer.columns()
    widths = [len(column.title) for column in columns]
    begun = False
    for rows in blocks:
        cells = printer.cells(rows)
        widths = [max(width, *(len(row[i]) for row in cells), 0) for i, width in enumerate(widths)]
        if not begun:
            yield _line([column.title for column in columns], columns, widths)
            begun = True
        for row in cells:
            yield _line(row, columns, widths)
    if not begun:
        yield _line([column.title for column in columns], columns, widths)


def _line(cells: Sequence[str], columns: Sequence[Column], widths: Sequence[int]) -> str:
    padded = (
        cell.rjust(w) if column.right else cell.ljust(w)
        for cell, column, w in zip(cells, columns, widths, strict=True)
    )
    return "  ".join(padded).rstrip() + "\n"
