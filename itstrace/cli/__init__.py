"""The command line: parse, call, render, exit. One file a command; `main` is where every error ends."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from itstrace._version import __version__
from itstrace.cli import analyze, commands, diff, events, export, info, lpi, rules, tables, verify
from itstrace.cli.help import Command, Group
from itstrace.cli.output import SETTINGS, note, silence
from itstrace.errors import ExitCode, ItsTraceError
from itstrace.report.text import plain

app = typer.Typer(
    cls=Group,
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"itstrace {__version__}")
        raise typer.Exit


@app.callback(
    epilog="""Begin with 'itstrace analyze trace.dat'; '... COMMAND --help' says more about each.

    Exit codes: 0 done, 1 a finding at or above --fail-on, 2 wrong usage, 3 the capture cannot be read or
    holds nothing of an ITS, 4 verify or diff found a difference, 130 interrupted."""
)
def _top(
    *,
    _show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
    no_color: Annotated[
        bool, typer.Option("--no-color", help="No colours (the variable NO_COLOR does the same).")
    ] = False,
) -> None:
    """What happened to my interrupt?

    Reads a capture of a KVM/arm64 host, replays the commands that the guests gave their GICv3 ITS, rebuilds
    the tables and the life of every LPI, and names what went wrong: lost, doubled, late or misrouted
    interrupts, with the evidence.
    """
    SETTINGS.color = not no_color


for command in (analyze, lpi, commands, tables, events, info, verify, diff, export, rules):
    command.register(app)
for registered in app.registered_commands:
    registered.cls = Command


def main() -> None:
    """Run itstrace and leave the process with its exit code."""
    # A caller may have closed them (`>&-`): what would be printed goes nowhere then.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    try:
        app(prog_name="itstrace")
    except ItsTraceError as error:
        note(f"itstrace: {plain(error.message)}")
        if error.advice is not None:
            note(f"  try: {error.advice}")
        _leave(error.exit_code)
    except KeyboardInterrupt:
        _leave(ExitCode.INTERRUPTED)
    except OSError as error:
        note(f"itstrace: {plain(str(error))}")
        _leave(ExitCode.UNREADABLE)
    except Exception:  # noqa: BLE001  # the last place that can tell a mistake of ours from a finding
        note(plain(traceback.format_exc()).replace("\\n", "\n"))
        note(
            f"itstrace {__version__}: this is a mistake of itstrace, not of the capture; please report it with the lines above"
        )
        _leave(ExitCode.BUG)


def script() -> None:
    """The `itstrace` program: as `main`, and gone at once.

    An interpreter that is taken apart frees frame by frame what the kernel takes back in one go; after a large
    capture that is a good part of the time.
    """
    code: object = ExitCode.DONE
    try:
        main()
    except SystemExit as leaving:
        code = leaving.code
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or ExitCode.UNREADABLE
    os._exit(code if isinstance(code, int) else ExitCode.DONE if code is None else ExitCode.BUG)


def _leave(code: ExitCode) -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    sys.exit(code)
