"""The tables of every ITS at one instant, as lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import polars as pl
from rich.text import Text

from itstrace.report.layout import Cell, Column, Sheet, table
from itstrace.report.text import hexa, known, number, plural

if TYPE_CHECKING:
    from itstrace.report.figures import Traffic
    from itstrace.tables import Tables

Row = dict[str, Any]

_ASSUMED: Final = Column("how known", style="dim")
_HOW: Final = {True: "seen in use", False: "mapped"}


def its_name(vm: int, its: int | None, base_gpa: int | None = None) -> str:
    """`VM 0, ITS 0 at 0x8080000`."""
    name = f"VM {vm}" if its is None else f"VM {vm}, ITS {its}"
    return name if base_gpa is None else f"{name} at {hexa(base_gpa)}"


def state(
    sheet: Sheet, tables: Tables, itss: pl.DataFrame, *, counted: Traffic | None = None, show: int | None = None, more: str = ""
) -> Iterator[Text]:
    """Devices, collections and events of every ITS, then the LPIs that no event maps. `itss`: rows of ITSS."""
    vms = _vms(tables, itss)
    for vm in vms:
        mine = itss.filter(pl.col("vm") == vm).sort("its")
        for its, base in mine.select("its", "base_gpa").iter_rows():
            here = (pl.col("vm") == vm) & (pl.col("its") == its)
            yield Text(its_name(vm, its, base), "bold")
            parts = (
                _devices(sheet, _rows(tables.devices, here), show, more),
                _collections(sheet, _rows(tables.collections, here), show, more),
                _events(sheet, vm, _rows(tables.events, here), _lpis_of(tables, vm), counted, show, more),
            )
            for part in parts:
                yield from part
                yield Text()
        unmapped = [lpi for lpi in _lpis_of(tables, vm).values() if not lpi["mapped"]]
        if unmapped:
            yield from _unmapped(sheet, vm, unmapped, show, more)
            yield Text()


def _vms(tables: Tables, itss: pl.DataFrame) -> list[int]:
    frames = [frame for frame in (itss, tables.devices, tables.collections, tables.events, tables.lpis) if frame is not None]
    return sorted({vm for frame in frames for vm in frame["vm"].to_list() if vm is not None})


def _rows(frame: pl.DataFrame | None, here: pl.Expr) -> list[Row] | None:
    return None if frame is None else frame.filter(here).to_dicts()


def _lpis_of(tables: Tables, vm: int) -> dict[int, Row]:
    if tables.lpis is None:
        return {}
    return {row["intid"]: row for row in tables.lpis.filter(pl.col("vm") == vm).sort("intid").to_dicts()}


def _devices(sheet: Sheet, rows: list[Row] | None, show: int | None, more: str) -> Iterator[Text]:
    columns = [Column("device", right=True), Column("event ids", right=True), Column("ITT", right=True)]

    def cells(row: Row) -> list[Cell]:
        bits = row["event_bits"]
        return [hexa(row["device_id"]), "?" if bits is None else f"{1 << bits:,}", hexa(row["itt_gpa"])]

    yield from _titled(sheet, "device", rows, columns, cells, show, more)


def _collections(sheet: Sheet, rows: list[Row] | None, show: int | None, more: str) -> Iterator[Text]:
    columns = [Column("collection", right=True), Column("vCPU", right=True)]

    def cells(row: Row) -> list[Cell]:
        target = row["target_vcpu"]
        return [known(row["icid"]), "none" if target is None and not row["assumed"] else known(target)]

    yield from _titled(sheet, "collection", rows, columns, cells, show, more)


def _events(
    sheet: Sheet, vm: int, rows: list[Row] | None, lpis: dict[int, Row], counted: Traffic | None, show: int | None, more: str
) -> Iterator[Text]:
    columns = [
        Column("device", right=True), Column("event", right=True), Column("LPI", right=True), Column("coll", right=True),
        Column("vCPU", right=True), Column("on", right=True), Column("prio", right=True), Column("pending", right=True),
    ]  # fmt: skip
    if counted is not None:
        columns += [Column("MSIs", right=True), Column("taken", right=True)]

    def cells(row: Row) -> list[Cell]:
        lpi = lpis.get(row["intid"], {})
        orphan = row["icid"] is None and not row["assumed"]
        line: list[Cell] = [
            hexa(row["device_id"]), known(row["event_id"]), known(row["intid"]), "none" if orphan else known(row["icid"]),
            _target(sheet, row["target_vcpu"], lpi.get("target_vcpu"), orphan=orphan),
            known(lpi.get("enabled")), _priority(lpi.get("priority")), known(lpi.get("pending")),
        ]  # fmt: skip
        if counted is not None:
            counts = counted.get((vm, row["intid"]))
            line += [number(counts.injections), number(counts.deliveries)]
        return line

    yield from _titled(sheet, "event", rows, columns, cells, show, more)


def _target(sheet: Sheet, collection: int | None, lpi: int | None, *, orphan: bool) -> str:
    """The collection's vCPU; where KVM would queue to another one (after MOVALL), both."""
    mine = "none" if orphan and lpi is None else known(collection)
    if lpi is None or lpi == collection:
        return mine
    return str(lpi) if collection is None else f"{mine} (LPI {sheet.arrow} {lpi})"


def _priority(value: int | None) -> str:
    return "?" if value is None else f"0x{value:02x}"


def _unmapped(sheet: Sheet, vm: int, rows: list[Row], show: int | None, more: str) -> Iterator[Text]:
    columns = [
        Column("LPI", right=True), Column("vCPU", right=True), Column("on", right=True), Column("prio", right=True),
        Column("pending", right=True),
    ]  # fmt: skip
    yield Text(f"VM {vm}: {plural(len(rows), 'LPI')} that no event maps any more", "bold")
    lines = [
        [str(r["intid"]), known(r["target_vcpu"]), known(r["enabled"]), _priority(r["priority"]), known(r["pending"])] for r in rows
    ]
    yield from table(sheet, columns, lines, show=show, more=more)


def _titled(
    sheet: Sheet, what: str, rows: list[Row] | None, columns: list[Column], cells: Any, show: int | None, more: str
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
    yield from table(sheet, columns, lines, show=show, more=more)
