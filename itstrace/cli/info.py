"""`itstrace info`: what a file is and what it holds."""

import typer

from itstrace.cli.options import AsJson, CapturePath, Events
from itstrace.cli.output import Output, working
from itstrace.cli.running import tell_plugins
from itstrace.observe import Catalogue, load_events
from itstrace.readers import open_capture
from itstrace.report.contents import contents, contents_document, overview
from itstrace.rules import all_rules


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="info", short_help="Say what a file is, what it holds and what is missing.")(_info)


def _info(capture: CapturePath, *, json: AsJson = False, events: Events = None) -> None:
    """Say what a capture is, what it holds and what is missing, without analyzing it.

    Shows the file's format and clock, the records of every event by CPU, where records were lost or the
    file is damaged, which events feed which observation, which rules could run on them, with what to record
    for the others, and which events look useful and are not understood.
    """
    catalogue = Catalogue() if events is None else load_events(events)
    with working(f"reading {capture.name}"), open_capture(capture) as opened:
        held = contents(opened, catalogue)
    tell_plugins()
    needs = {code: (rule.name, rule.needs) for code, rule in all_rules().items()}
    out = Output()
    if json:
        out.json(contents_document(held, needs))
    else:
        out.lines(overview(out.sheet, held, needs))
    out.close()
