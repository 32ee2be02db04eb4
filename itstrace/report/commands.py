"""ITS commands with the model's verdict, as lines and as a document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich.text import Text

from itstrace._version import __version__
from itstrace.report.events import task
from itstrace.report.layout import Cell, Column, Sheet, join, table
from itstrace.report.text import hexa, plain
from itstrace.units import seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import polars as pl

    from itstrace.analysis import Analysis

COMMANDS_SCHEMA: Final = "itstrace.commands/1"
#: From this width on the task and the whole verdict have columns of their own.
_WIDE: Final = 120
_STYLES: Final = {"fault": "red", "unreadable": "red", "ignored": "yellow", "assumed": "cyan"}


def command_rows(analysis: Analysis) -> pl.DataFrame:
    """Commands with their verdicts. Shape: columns of COMMANDS and VERDICTS, in their order."""
    verdicts = analysis.history.verdicts.select("seq", "opcode", "text", "verdict", "fault", "detail")
    return analysis.observations.commands.join(verdicts, on="seq", how="left", maintain_order="left")


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
                **{key: row[key] for key in ("opcode", "text", "verdict", "fault", "detail", "lost_before")},
            }
            for row in (rows if show is None else rows.head(show)).iter_rows(named=True)
        ],
    }


def command_lines(
    sheet: Sheet, analysis: Analysis, comms: Mapping[int, str], show: int | None = None
) -> Iterator[Text]:
    """One command a line; what is wrong with one stands behind it, or under it where the sheet is narrow."""
    rows = command_rows(analysis)
    several = analysis.observations.itss.height > 1
    wide = sheet.width is None or sheet.width >= _WIDE
    columns = [Column("time", right=True)]
    columns += [Column("cpu"), Column("task", give=1)] if wide else []
    columns += [Column("vm/its")] if several else []
    columns += [Column("slot", right=True), Column("verdict"), Column("command", flow=True)]
    lines = []
    for row in (rows if show is None else rows.head(show)).iter_rows(named=True):
        verdict = row["verdict"] or "?"
        line: list[Cell] = [seconds(row["time_ns"])]
        line += [f"{row['cpu']:03d}", task(comms, row["pid"])] if wide else []
        line += [f"{row['vm']}/{row['its']}"] if several else []
        line += [
            "?" if row["slot"] is None else hexa(row["slot"]),
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
