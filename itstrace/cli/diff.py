"""`itstrace diff`: what differs between two captures."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from itstrace.cli.options import AsJson, Events, Limit, Profile, rows_shown
from itstrace.cli.output import Output
from itstrace.cli.running import analyzed, instant
from itstrace.difference import Limits, difference
from itstrace.errors import ExitCode, UsageError
from itstrace.report.difference import ROWS_SHOWN, difference_document, difference_lines
from itstrace.report.difference_html import difference_page

_DEFAULTS = Limits()
_STDIN = Path("-")


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        name="diff",
        short_help="Say what differs between two captures.",
        epilog="""Examples:

        \b
          itstrace diff good.dat bad.dat
          itstrace diff good.dat bad.dat --html diff.html
          itstrace diff before.dat after.dat --at "SNAP churn stopped"
          itstrace diff good.dat bad.dat --latency-factor 1.2

        Exit codes: 0 no difference, 4 something differs.""",
    )(_diff)


def _diff(  # noqa: PLR0917  one option each; the order is the help's
    a: Annotated[
        Path,
        typer.Argument(
            metavar="A", help="A capture, in any form that analyze reads: the good one.", show_default=False
        ),
    ],
    b: Annotated[
        Path,
        typer.Argument(
            metavar="B", help="Another, which need not be of that form: the bad one.", show_default=False
        ),
    ],
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the report as one HTML file, too.", show_default=False),
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            help="Compare the tables as of T in both: seconds as the trace prints them, +S from the start, -S "
            "from the end, or words of one marker. Without it the end, or just before a VM was torn down.",
        ),
    ] = None,
    at_a: Annotated[str | None, typer.Option("--at-a", metavar="T", help="The same for A alone.")] = None,
    at_b: Annotated[str | None, typer.Option("--at-b", metavar="T", help="The same for B alone.")] = None,
    latency_factor: Annotated[
        float,
        typer.Option(metavar="X", help="How many times the other's a median, a p99 or the tail must be."),
    ] = _DEFAULTS.latency_factor,
    share_points: Annotated[
        float,
        typer.Option(metavar="P", help="How many points the shares of an outcome must lie apart."),
    ] = _DEFAULTS.share_points,
    rate_factor: Annotated[
        float, typer.Option(metavar="X", help="How many times the other's a rate must be to be told.")
    ] = _DEFAULTS.rate_factor,
    min_samples: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many MSIs both must have to be compared.")
    ] = _DEFAULTS.samples,
    seed_a: Annotated[
        list[str] | None,
        typer.Option("--seed-a", metavar="DUMP[@T]", help="What A's tables held at T; see analyze --seed."),
    ] = None,
    seed_b: Annotated[
        list[str] | None,
        typer.Option("--seed-b", metavar="DUMP[@T]", help="What B's tables held at T."),
    ] = None,
    limit: Limit = None,
    json: AsJson = False,
    kernel: Profile = None,
    events: Events = None,
) -> None:
    """Compare two captures: what is new in B and what could explain it; findings, outcomes, latencies, rates and tables.

    A difference is a finding (error or warning) that only one has, a table entry that both make known and
    that is not the same, or a shift of outcomes or latencies beyond chance and the limits. The rest is told,
    and is none. Captures of different guests are said to be.
    """
    if a == b == _STDIN:
        raise UsageError("A and B cannot both be standard input", advice="name a file for one of them")
    limits = Limits(
        latency_factor=_at_least(1, "--latency-factor", latency_factor),
        share_points=_at_least(0, "--share-points", share_points),
        rate_factor=_at_least(1, "--rate-factor", rate_factor),
        samples=min_samples,
    )
    if html is not None:
        _check_page(html, (a, b))
    one = analyzed(a, profile=kernel, seeds=seed_a or (), events=events)
    # A capture that is compared with itself is read once.
    same = a == b and (seed_a or []) == (seed_b or [])
    other = one if same else analyzed(b, profile=kernel, seeds=seed_b or (), events=events)
    times = [
        None if text is None else instant(analysis, text)
        for analysis, text in ((one, at_a or at), (other, at_b or at))
    ]
    different = difference(one, other, at_a_ns=times[0], at_b_ns=times[1], limits=limits)
    out = Output()
    if html is not None:
        _save(html, difference_page(different))
    if json:
        out.json(difference_document(different))
    else:
        shown = (
            ROWS_SHOWN
            if limit is None and out.sheet.width is not None
            else rows_shown(limit, out.sheet.width)
        )
        out.lines(difference_lines(out.sheet, different, shown))
    out.close()
    if different.differs:
        raise typer.Exit(ExitCode.DIFFERENCE)


def _at_least(least: int, option: str, value: float) -> float:
    if not isfinite(value) or value < least:
        raise UsageError(f"{option} {value:g}: it must be {least} or more")
    return value


def _check_page(path: Path, captures: tuple[Path, Path]) -> None:
    if path == _STDIN:
        raise UsageError("--html writes to a file", advice="--html diff.html")
    for capture in captures:
        if path.exists() and capture.exists() and path.samefile(capture):
            raise UsageError(f"--html {path} would overwrite the capture", advice="name another file")


def _save(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--html {path}: cannot be written: {(error.strerror or str(error)).lower()}"
        ) from error
