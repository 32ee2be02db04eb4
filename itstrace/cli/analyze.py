"""`itstrace analyze`: what is wrong in a capture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from itstrace.analysis import Analysis
from itstrace.cli.options import Events, Profile, Seeds
from itstrace.cli.output import Output, json_text
from itstrace.cli.running import analyzed
from itstrace.cli.web import save_page
from itstrace.errors import ExitCode, UsageError
from itstrace.findings import Severity, filter_findings
from itstrace.report.html import Assets
from itstrace.report.json import analysis_document
from itstrace.report.terminal import report
from itstrace.rules import RULES

_STDOUT = "-"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        name="analyze",
        short_help="Say what is wrong in a capture, with the evidence.",
        epilog="""Examples:

        \b
          itstrace analyze trace.dat
          itstrace analyze trace.dat --fail-on error --json result.json
          itstrace analyze trace.dat --html report.html
          itstrace analyze trace.dat --select ITS3,ITS4 --ignore ITS405
          itstrace analyze trace.dat perf.data
          ssh host cat /sys/kernel/tracing/trace | itstrace analyze -
          itstrace analyze trace.dat --seed vgic-state@+0.5""",
    )(_analyze)


def _analyze(  # noqa: PLR0917  one option each; the order is the help's
    captures: Annotated[
        list[Path],
        typer.Argument(
            metavar="CAPTURE",
            help="A capture: trace.dat, perf.data, text of ftrace, trace-cmd or perf script, a log of QEMU's ITS; packed "
            "or not; a folder or tar with one; or - for standard input. Several are parts of one, merged by time.",
            show_default=False,
        ),
    ],
    json: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write the whole analysis as JSON; - is standard output, instead of the report.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the report as one page for a browser, which opens offline.",
            show_default=False,
        ),
    ] = None,
    assets: Annotated[
        Assets,
        typer.Option(
            help="Where --html puts style, scripts and plotly.js: in the page, in a folder beside it, or plotly.js "
            "on its CDN."
        ),
    ] = Assets.INLINE,
    fail_on: Annotated[
        Severity | None,
        typer.Option(
            metavar="LEVEL",
            help="Exit with 1 if there is a finding this bad or worse: error, warning or note.",
        ),
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODES", help="Only findings of these codes, or beginnings of codes: ITS3,ITS401."
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="CODES", help="No findings of these codes.")
    ] = None,
    seed: Seeds = None,
    kernel: Profile = None,
    events: Events = None,
) -> None:
    """Replay a capture and say what is wrong in it.

    The report begins with the verdict; then come the capture itself, every finding with its evidence and
    what to do next, the tables as they were at the end, how long interrupts took, and what the capture
    cannot tell.
    """
    chosen, ignored = _codes("--select", select), _codes("--ignore", ignore)
    if json not in (None, _STDOUT) and any(_same_file(Path(json), capture) for capture in captures):
        raise UsageError(f"--json {json} would overwrite the capture", advice="name another file")
    if html is not None and any(_same_file(html, capture) for capture in captures):
        raise UsageError(f"--html {html} would overwrite the capture", advice="name another file")
    analysis = analyzed(*captures, profile=kernel, seeds=seed or (), events=events)
    analysis.findings = filter_findings(analysis.findings, select=chosen, ignore=ignored)
    if html is not None:
        save_page(html, analysis, captures, assets)
    out = Output()
    if json == _STDOUT:
        out.json(analysis_document(analysis))
    else:
        if json is not None:
            _save(Path(json), analysis)
        out.lines(report(out.sheet, analysis, _why, len(RULES)))
    out.close()
    if fail_on is not None and any(finding.severity.rank <= fail_on.rank for finding in analysis.findings):
        raise typer.Exit(ExitCode.FINDINGS)


def _codes(option: str, given: Sequence[str] | None) -> tuple[str, ...]:
    """Codes and beginnings of codes, by commas or by repeating the option."""
    codes = [code.strip().upper() for text in given or () for code in text.split(",") if code.strip()]
    for code in codes:
        if not any(known.startswith(code) for known in RULES):
            raise UsageError(
                f"{option} {code}: no rule has a code that begins so", advice="itstrace rules, for all codes"
            )
    if given and not codes:
        raise UsageError(f"{option} names no code", advice=f"{option} ITS3,ITS401")
    return tuple(codes)


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _why(code: str) -> str:
    rule = RULES.get(code)
    return "" if rule is None else rule.section("Why it matters")


def _save(path: Path, analysis: Analysis) -> None:
    try:
        path.write_text(json_text(analysis_document(analysis)), encoding="ascii")
    except OSError as error:
        raise UsageError(
            f"--json {path}: cannot be written: {(error.strerror or str(error)).lower()}"
        ) from error
