"""`itstrace info`: what a file is and what it holds."""

import typer

from itstrace.cli.options import AsJson, CapturePath
from itstrace.cli.output import Output, working
from itstrace.readers import open_capture
from itstrace.report.contents import contents, contents_document, overview
from itstrace.rules import RULES


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="info", short_help="Say what a file is, what it holds and what is missing.")(_info)


def _info(capture: CapturePath, *, json: AsJson = False) -> None:
    """Say what a capture is, what it holds and what is missing, without analyzing it.

    Shows the file's format and clock, the records of every event by CPU, where records were lost or the
    file is damaged, which events feed which observation, and which rules could run on them, with what to
    record for the others.
    """
    with working(f"reading {capture.name}"), open_capture(capture) as opened:
        held = contents(opened)
    needs = {code: (rule.name, rule.needs) for code, rule in RULES.items()}
    out = Output()
    if json:
        out.json(contents_document(held, needs))
    else:
        out.lines(overview(out.sheet, held, needs))
    out.close()
