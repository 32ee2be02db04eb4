"""`itstrace commands`: every ITS command, and what the model makes of it."""

import typer

from itstrace.cli.options import All, AsJson, Captures, Events, Profile, Seeds
from itstrace.cli.output import Output
from itstrace.cli.running import analyzed
from itstrace.readers import open_captures
from itstrace.report.commands import command_documents, command_lines


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="commands", short_help="List every ITS command, decoded and judged.")(_commands)


def _commands(
    captures: Captures,
    *,
    limit: All = None,
    json: AsJson = False,
    seed: Seeds = None,
    kernel: Profile = None,
    events: Events = None,
) -> None:
    """List every ITS command in the order in which its ITS took it, with the model's verdict on it.

    The verdict is ok; fault, with the error that the architecture names; ignored; unreadable; or assumed,
    where a command rests on something from before the capture.
    """
    analysis = analyzed(*captures, profile=kernel, seeds=seed or (), events=events)
    with open_captures(captures) as opened:
        comms = opened.comms
    out = Output()
    if json:
        out.json(command_documents(analysis, comms, limit or None))
    else:
        out.lines(command_lines(out.sheet, analysis, comms, limit or None))
    out.close()
