"""`itstrace events`: any event of a capture as a table."""

import json as json_module
from collections.abc import Iterator
from typing import Annotated

import polars as pl
import typer
from rich.text import Text

from itstrace._version import __version__
from itstrace.cli.options import AsJson, CapturePath, Limit, rows_shown
from itstrace.cli.output import Output, working
from itstrace.readers import open_capture
from itstrace.readers.base import Capture, find_event
from itstrace.report.contents import contents, event_documents, event_table
from itstrace.report.events import Printer, piped, records
from itstrace.report.text import plain

_SCHEMA = "itstrace.events/1"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        name="events",
        short_help="Print any event of the capture as a table.",
        epilog="""Examples:

        \b
          itstrace events trace.dat
          itstrace events trace.dat kvm_exit --limit 20
          itstrace events trace.dat its:its_cmd --json > commands.json""",
    )(_events)


def _events(
    capture: CapturePath,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="An event: system:name, or just its name.")
    ] = None,
    *,
    limit: Limit = None,
    json: AsJson = False,
) -> None:
    """Print the records of one event; without NAME, list the events that the capture holds.

    Numbers that the kernel has names for are printed by name, pointers and addresses in hex. JSON has the
    numbers themselves.
    """
    out = Output()
    with open_capture(capture) as opened:
        if name is None:
            with working(f"reading {capture.name}"):
                held = contents(opened)
            if json:
                documents = event_documents(held)
                out.json(
                    {"schema": _SCHEMA, "version": __version__, "capture": str(capture), "events": documents}
                )
            else:
                out.lines(event_table(out.sheet, held, with_fields=True))
        else:
            _records(out, opened, find_event(opened.formats, name), limit, json=json)
    out.close()


def _records(out: Output, opened: Capture, event: str, limit: int | None, *, json: bool) -> None:
    printer = Printer.of(opened.formats[event], opened.comms)
    show = rows_shown(limit, None if json else out.sheet.width)
    blocks = _blocks(opened, event, show)
    if json:
        _print_json(out, printer, blocks, show)
    elif out.sheet.width is None:
        for line in piped(printer, _until(blocks, show)):
            out.write(line)
            if out.gone:
                return
    else:
        assert show is None or show > 0
        frames = list(blocks)
        if not frames:
            out.lines([Text(f"no records of {plain(event)}", "dim italic")])
            return
        rows = pl.concat(frames)
        out.lines(records(out.sheet, printer, rows[:show]))
        if show is not None and rows.height > show:
            out.lines([Text(f"the first {show} records; --limit 0 prints all", "dim italic")])


def _blocks(opened: Capture, event: str, show: int | None) -> Iterator[pl.DataFrame]:
    """The records of an event, block by block; one more than are to be shown, if there is one."""
    left = None if show is None else show + 1
    for block in opened.blocks({event: None}):
        frame = block.get(event)
        if frame is None or frame.is_empty():
            continue
        rows = frame if left is None else frame.head(left)
        yield rows
        if left is not None:
            left -= rows.height
            if left <= 0:
                return


def _until(blocks: Iterator[pl.DataFrame], show: int | None) -> Iterator[pl.DataFrame]:
    """No more than `show` rows in all."""
    left = show
    for rows in blocks:
        yield rows if left is None else rows.head(left)
        if left is not None:
            left -= rows.height
            if left <= 0:
                return


def _print_json(out: Output, printer: Printer, blocks: Iterator[pl.DataFrame], show: int | None) -> None:
    head = {"schema": _SCHEMA, "version": __version__, "event": printer.event.full_name}
    out.write(json_module.dumps(head)[:-1] + ', "records": [')
    separator = "\n"
    for rows in _until(blocks, show):
        for row in rows.iter_rows(named=True):
            out.write(separator + json_module.dumps(printer.document(row)))
            separator = ",\n"
        if out.gone:
            return
    out.write("\n]}\n")
