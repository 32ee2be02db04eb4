"""`itstrace verify`: the replayed state against the kernel's own dump."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003  # typer reads the annotations
from typing import TYPE_CHECKING, Annotated

import polars as pl
import typer
from rich.text import Text

from itstrace._version import __version__
from itstrace.cli.options import AsJson, CapturePath, Events, Limit, Profile, Seeds, Vm, rows_shown
from itstrace.cli.output import Output, note
from itstrace.cli.running import analyzed, instant
from itstrace.report.layout import Column, table
from itstrace.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from itstrace.report.layout import Sheet
    from itstrace.verify import Comparison

_SCHEMA = "itstrace.verify/1"
#: As they are read: what is compared, then both sides.
_COLUMNS = (
    Column("what"),
    Column("which", right=True),
    Column("field"),
    Column("replay", right=True),
    Column("kernel", right=True),
    Column("VM", right=True),
    Column("dump", give=1),
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        name="verify",
        short_help="Compare the replayed state with the kernel's own dump.",
        epilog="""Examples:

        \b
          itstrace verify trace.dat vgic-state
          itstrace verify trace.dat vgic-its-state@8080000 --at 572.870490
          itstrace verify trace.dat vgic-state guest-tables --at "SNAP churn stopped"

        Exit codes: 0 all that could be compared is equal, 3 nothing could be, 4 something differs.""",
    )(_verify)


def _verify(
    capture: CapturePath,
    dumps: Annotated[
        list[Path],
        typer.Argument(
            metavar="DUMP",
            help="A vgic-state or vgic-its-state@... of debugfs, or a folder of images with tables.json.",
            show_default=False,
        ),
    ],
    *,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="When the dump was taken: seconds as the trace prints them, +S from the start, -S from the "
            "end, or words of one marker. Without it the end, or just before the VM was torn down.",
        ),
    ] = None,
    vm: Vm = None,
    its: Annotated[
        int | None, typer.Option("--its", metavar="N", help="The ITS meant, where the VM has several.")
    ] = None,
    limit: Limit = None,
    json: AsJson = False,
    seed: Seeds = None,
    kernel: Profile = None,
    events: Events = None,
) -> None:
    """Compare the tables and LPIs that the commands must have led to with what the kernel says it has.

    What neither the capture nor a seed makes known is unknown, and no difference. Take dumps while the guest
    is stopped: of a running one, what is pending changes while the dump is taken.
    """
    analysis = analyzed(capture, profile=kernel, seeds=seed or (), events=events)
    at_ns = None if at is None else instant(analysis, at)
    comparison = verify(analysis, dumps, at_ns, vm=vm, its=its, seed=analysis.seed)
    out = Output()
    if json:
        out.json(_document(comparison, at_ns))
    else:
        for told in comparison.notes:
            note(told)
        out.lines(_lines(out.sheet, comparison, rows_shown(limit, out.sheet.width)))
    out.close()
    raise typer.Exit(comparison.exit_code)


def _document(comparison: Comparison, at_ns: int | None) -> dict[str, object]:
    return {
        "schema": _SCHEMA,
        "version": __version__,
        "time_ns": at_ns,
        "summary": {verdict: comparison.count(verdict) for verdict in ("equal", "unknown", "different")},
        "rows": comparison.rows.to_dicts(),
        "notes": list(comparison.notes),
    }


def _lines(sheet: Sheet, comparison: Comparison, show: int | None) -> Iterator[Text]:
    """Differences first, then what is unknown and why, then the counts."""
    if comparison.count("different"):
        yield Text("different", "bold red")
        rows = (_cells(row) for row in comparison.differences.iter_rows(named=True))
        yield from table(sheet, _COLUMNS, rows, show=show, more="--limit 0 for all")
        yield Text()
    unknown = comparison.rows.filter(pl.col("verdict") == "unknown")
    if not unknown.is_empty():
        yield Text("unknown", "bold")
        columns = [Column("what"), Column("field"), Column("entries", right=True), Column("why", give=1)]
        grouped = unknown.group_by("what", "field", "reason", maintain_order=True).len()
        yield from table(
            sheet,
            columns,
            ([what, field, f"{count:,}", reason] for what, field, reason, count in grouped.iter_rows()),
        )
        yield Text()
    counts = [f"{comparison.count(verdict):,} {verdict}" for verdict in ("equal", "unknown", "different")]
    yield Text("nothing could be compared: " if not _compared(comparison) else "") + Text(", ".join(counts))


def _compared(comparison: Comparison) -> bool:
    return bool(comparison.count("equal") or comparison.count("different"))


def _cells(row: dict[str, object]) -> Sequence[str]:
    whose = str(row["vm"]) if row["its"] is None else f"{row['vm']}, ITS {row['its']}"
    sides = ["none" if row[side] is None else str(row[side]) for side in ("replay", "kernel")]
    return [str(row["what"]), str(row["key"]), str(row["field"]), *sides, whose, str(row["dump"])]
