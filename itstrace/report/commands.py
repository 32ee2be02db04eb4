"""ITS commands with the model's verdict, as lines and as a document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import polars as pl
from rich.text import Text

from itstrace._version import __version__
from itstrace.report.events import task
from itstrace.report.layout import Cell, Column, Sheet, join, table
from itstrace.report.text import hexa, plain
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from itstrace.analysis import Analysis

COMMANDS_SCHEMA: Final = "itstrace.commands/1"
#: From this width on the task and the whole verdict have columns of their own.
_WIDE: Final = 120
_STYLES: Final = {"fault": "red", "unreadable": "red", "ignored": "yellow", "assumed": "cyan"}


#: MOVI, INT, CLEAR, MAPTI, MAPI, INV, DISCARD: they name an event. Spec: IHI 0069H, ITS commands.
EVENT_OPCODES: Final = (0x01, 0x03, 0x04, 0x0A, 0x0B, 0x0C, 0x0F)


def command_rows(analysis: Analysis) -> pl.DataFrame:
    """Commands with their verdicts. Shape: columns of COMMANDS and VERDICTS, and `intid`, in their order."""
    verdicts = analysis.history.verdicts.select("seq", "opcode", "text", "verdict", "fault", "detail")
    rows = analysis.observations.commands.join(verdicts, on="seq", how="left", maintain_order="left")
    return rows.join(_resolved(analysis), on="seq", how="left", maintain_order="left")


def events_named(commands: pl.DataFrame) -> pl.DataFrame:
    """Commands that name an event, each with it. Shape: seq, vm, its, device_id, event_id."""
    return commands.filter((pl.col("dw0") & 0xFF).is_in(EVENT_OPCODES)).select(
        "seq",
        "vm",
        "its",
        device_id=(pl.col("dw0") // 2**32).cast(pl.UInt32),
        event_id=(pl.col("dw1") & 0xFFFFFFFF).cast(pl.UInt32),
    )


def _resolved(analysis: Analysis) -> pl.DataFrame:
    """The LPI that the event of each command meant as the ITS took it. Shape: seq, intid.

    A command that maps the event means the LPI that it gave it, and one that unmaps it the LPI that it took away:
    the mapping that began last, and had not ended before.
    """
    event = ["vm", "its", "device_id", "event_id"]
    named = events_named(analysis.observations.commands)
    mappings = analysis.history.mappings.select(
        *event, "intid", "to_seq", seq=pl.col("from_seq").fill_null(0)
    )
    found = (
        named.drop_nulls()
        .sort("seq", maintain_order=True)
        .join_asof(
            mappings.drop_nulls(event).sort("seq", maintain_order=True),
            on="seq",
            by=event,
            check_sortedness=False,
        )
    )
    ended = pl.col("to_seq") < pl.col("seq")
    return found.filter(~ended.fill_null(value=False)).select("seq", "intid").drop_nulls()


def command_documents(
    analysis: Analysis, comms: Mapping[int, str], show: int | None = None
) -> dict[str, Any]:
    """The same for a program; the four doublewords are hex strings."""
    rows = command_rows(analysis)
    return {
        "schema": COMMANDS_SCHEMA,
        "version": __version__,
        "total": rows.height,
        "commands": [
            {
                **{key: row[key] for key in ("time_ns", "cpu", "pid")},
                "comm": comms.get(row["pid"]),
                **{key: row[key] for key in ("vm", "its", "slot")},
                "dw": [
                    None if row[word] is None else hexa(row[word]) for word in ("dw0", "dw1", "dw2", "dw3")
                ],
                **{
                    key: row[key]
                    for key in ("opcode", "text", "intid", "verdict", "fault", "detail", "lost_before")
                },
            }
            for row in (rows if show is None else rows.head(show)).iter_rows(named=True)
        ],
    }


def command_lines(
    sheet: Sheet, analysis: Analysis, comms: Mapping[int, str], show: int | None = None
) -> Iterator[Text]:
    """One command a line, with the LPI that its event meant; what is wrong stands behind it, or under it on a narrow sheet."""
    rows = command_rows(analysis)
    several = analysis.observations.itss.height > 1
    wide = sheet.width is None or sheet.width >= _WIDE
    columns = [Column("time", right=True)]
    columns += [Column("cpu"), Column("task", give=1)] if wide else []
    columns += [Column("vm/its")] if several else []
    columns += [Column("slot", right=True), Column("LPI", right=True), Column("verdict")]
    columns += [Column("command", flow=True)]
    lines = []
    for row in (rows if show is None else rows.head(show)).iter_rows(named=True):
        verdict = row["verdict"] or "?"
        line: list[Cell] = [seconds(row["time_ns"])]
        line += [f"{row['cpu']:03d}", task(comms, row["pid"])] if wide else []
        line += [f"{row['vm']}/{row['its']}"] if several else []
        line += [
            "?" if row["slot"] is None else hexa(row["slot"]),
            "" if row["intid"] is None else str(row["intid"]),
            Text(verdict, _STYLES.get(verdict, "dim")),
        ]
        why = ": ".join(part for part in (row["fault"], row["detail"]) if part)
        told = "; ".join(
            part for part in (why, "commands before this one were lost" if row["lost_before"] else "") if part
        )
        line.append(
            join(row["text"] or "?", Text(f"  {plain(told)}" if told else "", _STYLES.get(verdict, "yellow")))
        )
        lines.append(line)
    if not lines:
        yield Text("no ITS commands")
        return
    yield from table(sheet, columns, lines, indent="")
    if show is not None and rows.height > show:
        yield Text(f"{show:,} of {rows.height:,} commands shown; --limit 0 prints all", "dim italic")
