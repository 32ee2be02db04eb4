"""The tables of every ITS at one instant, as lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import polars as pl
from rich.text import Text

from itstrace.report.layout import Cell, Column, Sheet, table
from itstrace.report.text import hexa, known, number, plural

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from itstrace.report.figures import Traffic
    from itstrace.tables import Tables

Row = dict[str, Any]

_ASSUMED: Final = Column("known by", style="dim")
_HOW: Final = {True: "use", False: "command"}


def its_name(vm: int, its: int | None, base_gpa: int | None = None) -> str:
    """`VM 0, ITS 0 at 0x8080000`."""
    name = f"VM {vm}" if its is None else f"VM {vm}, ITS {its}"
    return name if base_gpa is None else f"{name} at {hexa(base_gpa)}"


def right(*titles: str) -> list[Column]:
    """Columns of numbers."""
    return [Column(title, right=True) for title in titles]


@dataclass(frozen=True, slots=True)
class State:
    """What is to be shown: `counted` adds the MSIs of each LPI; at most `show` rows a table, then `more`."""

    sheet: Sheet
    tables: Tables
    itss: pl.DataFrame  # rows of ITSS
    counted: Traffic | None = None
    show: int | None = None
    more: str = ""

    def lines(self) -> Iterator[Text]:
        """Devices, collections and events of every ITS, then LPIs that no event maps."""
        for vm in self._vms():
            lpis = self._lpis(vm)
            mine = self.itss.filter(pl.col("vm") == vm).sort("its")
            for its, base in mine.select("its", "base_gpa").iter_rows():
                here = (pl.col("vm") == vm) & (pl.col("its") == its)
                yield Text(its_name(vm, its, base), "bold")
                yield from self._devices(_rows(self.tables.devices, here))
                yield Text()
                yield from self._collections(_rows(self.tables.collections, here))
                yield Text()
                yield from self._events(vm, _rows(self.tables.events, here), lpis)
                yield Text()
            unmapped = [lpi for lpi in lpis.values() if not lpi["mapped"]]
            if unmapped:
                yield from self._unmapped(vm, unmapped)
                yield Text()

    def _vms(self) -> list[int]:
        tables = self.tables
        frames = (self.itss, tables.devices, tables.collections, tables.events, tables.lpis)
        return sorted(
            {vm for frame in frames if frame is not None for vm in frame["vm"].drop_nulls().to_list()}
        )

    def _lpis(self, vm: int) -> dict[int, Row]:
        if self.tables.lpis is None:
            return {}
        rows = self.tables.lpis.filter(pl.col("vm") == vm).sort("intid").to_dicts()
        return {row["intid"]: row for row in rows}

    def _devices(self, rows: list[Row] | None) -> Iterator[Text]:
        def cells(row: Row) -> list[Cell]:
            bits = row["event_bits"]
            return [hexa(row["device_id"]), "?" if bits is None else f"{1 << bits:,}", hexa(row["itt_gpa"])]

        yield from self._titled("device", rows, right("device", "event ids", "ITT"), cells)

    def _collections(self, rows: list[Row] | None) -> Iterator[Text]:
        def cells(row: Row) -> list[Cell]:
            target = row["target_vcpu"]
            return [known(row["icid"]), "none" if target is None and not row["assumed"] else known(target)]

        yield from self._titled("collection", rows, right("collection", "vCPU"), cells)

    def _events(self, vm: int, rows: list[Row] | None, lpis: dict[int, Row]) -> Iterator[Text]:
        columns = right("device", "event", "LPI", "coll", "vCPU", "on", "prio", "pending")
        columns += [] if self.counted is None else right("MSIs", "delivered")

        def cells(row: Row) -> list[Cell]:
            lpi = lpis.get(row["intid"], {})
            orphan = row["icid"] is None and not row["assumed"]
            line: list[Cell] = [hexa(row["device_id"]), known(row["event_id"]), known(row["intid"])]
            line.append("none" if orphan else known(row["icid"]))
            line.append(self._target(row["target_vcpu"], lpi.get("target_vcpu"), orphan=orphan))
            line += _held(lpi)
            if self.counted is not None:
                counts = self.counted.get((vm, row["intid"]))
                line += [number(counts.injections), number(counts.deliveries)]
            return line

        yield from self._titled("event", rows, columns, cells)

    def _target(self, collection: int | None, lpi: int | None, *, orphan: bool) -> str:
        """The collection's vCPU; where KVM would queue to another one (after MOVALL), both."""
        mine = "none" if orphan and lpi is None else known(collection)
        if lpi is None or lpi == collection:
            return mine
        return str(lpi) if collection is None else f"{mine} (LPI {self.sheet.arrow} {lpi})"

    def _unmapped(self, vm: int, rows: list[Row]) -> Iterator[Text]:
        # Without any table the commands were not recorded, and nothing says that an event is gone.
        tables = (self.tables.devices, self.tables.collections, self.tables.events)
        told = any(frame is not None and vm in frame["vm"] for frame in tables)
        what = "that no event maps any more" if told else "of which no event is known"
        yield Text(f"VM {vm}: {plural(len(rows), 'LPI')} {what}", "bold")
        columns = right("LPI", "vCPU", "on", "prio", "pending")
        lines = [[str(row["intid"]), known(row["target_vcpu"]), *_held(row)] for row in rows]
        yield from table(self.sheet, columns, lines, show=self.show, more=self.more)

    def _titled(
        self, what: str, rows: list[Row] | None, columns: list[Column], cells: Callable[[Row], list[Cell]]
    ) -> Iterator[Text]:
        if rows is None:
            yield Text(f"  {what}s are not known", "dim")
            return
        if not rows:
            yield Text(f"  no {what}s", "dim")
            return
        guessed = any(row["assumed"] for row in rows)
        columns = [*columns, _ASSUMED] if guessed else columns
        lines = [[*cells(row), *([_HOW[bool(row["assumed"])]] if guessed else [])] for row in rows]
        yield Text(f"  {plural(len(rows), what)}")
        yield from table(self.sheet, columns, lines, show=self.show, more=self.more)


def _rows(frame: pl.DataFrame | None, here: pl.Expr) -> list[Row] | None:
    return None if frame is None else frame.filter(here).to_dicts()


def _held(lpi: Row) -> list[Cell]:
    """What KVM holds of an LPI: enabled, priority, pending."""
    priority = lpi.get("priority")
    return [
        known(lpi.get("enabled")),
        "?" if priority is None else f"0x{priority:02x}",
        known(lpi.get("pending")),
    ]
