"""`itstrace analyze`: what is wrong in a capture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from itstrace.analysis import Analysis
from itstrace.baseline import Compared, Past, compare, read_baseline
from itstrace.cli.options import Captures, Events, Profile, Seeds, Settings
from itstrace.cli.output import Output, json_text
from itstrace.cli.rules import entries
from itstrace.cli.running import analyzed, numbers
from itstrace.cli.web import save_page
from itstrace.errors import ExitCode, UsageError
from itstrace.findings import Severity, filter_findings
from itstrace.report.html import Assets
from itstrace.report.json import analysis_document
from itstrace.report.junit import junit_text
from itstrace.report.sarif import sarif_document
from itstrace.report.terminal import report
from itstrace.rules import all_rules

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
          itstrace analyze trace.dat --sarif result.sarif --junit result.xml
          itstrace analyze trace.dat --baseline result.json --fail-on error
          itstrace analyze trace.dat --html report.html
          itstrace analyze trace.dat --select ITS3,ITS4 --ignore ITS405
          itstrace analyze trace.dat perf.data
          ssh host cat /sys/kernel/tracing/trace | itstrace analyze -
          itstrace analyze trace.dat --seed vgic-state@+0.5""",
    )(_analyze)


def _analyze(  # noqa: PLR0917  one option each; the order is the help's
    captures: Captures,
    json: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write the whole analysis as JSON; - is standard output, instead of the report.",
        ),
    ] = None,
    sarif: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Write the findings as SARIF 2.1.0, for editors and code scanning."
        ),
    ] = None,
    junit: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Write JUnit XML, a test case a rule; one fails as --fail-on says, or on errors.",
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
    baseline: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The JSON of an earlier analysis: what it has already is counted, not told, and does not fail.",
            show_default=False,
        ),
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODES",
            help="Only findings of these codes, or beginnings of codes: ITS3,ITS401; or one of several: ITS401-2.",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="CODES", help="No findings of these codes.")
    ] = None,
    settings: Settings = None,
    seed: Seeds = None,
    kernel: Profile = None,
    events: Events = None,
) -> None:
    """Replay a capture and say what is wrong in it.

    The report begins with the verdict; then come the capture itself, every cause with its evidence, what follows
    from it and what to do next, the tables as they were at the end, how long interrupts took, and what the capture
    cannot tell.
    """
    chosen, ignored = _codes("--select", select), _codes("--ignore", ignore)
    outputs = {
        option: file for option, file in (("--json", json), ("--sarif", sarif), ("--junit", junit)) if file
    }
    _check_outputs(outputs | ({} if html is None else {"--html": str(html)}), captures)
    past = None if baseline is None else _baseline(baseline)
    analysis = analyzed(
        *captures, profile=kernel, seeds=seed or (), events=events, settings=numbers(settings)
    )
    _check_numbers(analysis, {"--select": chosen, "--ignore": ignored}, baseline)
    analysis.findings = filter_findings(analysis.findings, select=chosen, ignore=ignored)
    if html is not None:
        save_page(html, analysis, captures, assets)
    against = _compared(analysis, past, baseline, chosen, ignored)
    rules = entries()
    # A rule is asked for with any of its findings; it is not left out with one of them.
    wanted = tuple(code.partition("-")[0] for code in chosen)
    dropped = tuple(code for code in ignored if "-" not in code)
    asked = [
        rule
        for rule in rules
        if (not wanted or rule.code.startswith(wanted)) and not (dropped and rule.code.startswith(dropped))
    ]
    makers: dict[str, Callable[[], str]] = {
        "--json": lambda: json_text(analysis_document(analysis, against)),
        "--sarif": lambda: json_text(sarif_document(analysis, rules, against=against, folder=Path.cwd())),
        "--junit": lambda: junit_text(analysis, asked, fail_on=fail_on or Severity.ERROR, against=against),
    }
    out = Output()
    for option, file in outputs.items():
        if file != _STDOUT:
            _save(option, Path(file), makers[option]())
    for option in (option for option, file in outputs.items() if file == _STDOUT):
        out.write(makers[option]())
    if _STDOUT not in outputs.values():
        out.lines(report(out.sheet, analysis, _why, len(rules), against))
    out.close()
    fresh = (one for one in analysis.findings if against is None or not against.is_known(one))
    if fail_on is not None and any(finding.severity.rank <= fail_on.rank for finding in fresh):
        raise typer.Exit(ExitCode.FINDINGS)


def _check_outputs(outputs: dict[str, str], captures: Sequence[Path]) -> None:
    """One result for each file, and none over a capture."""
    taken: dict[str, str] = {}
    for option, file in outputs.items():
        place = file if file == _STDOUT else str(Path(file).absolute())
        if place in taken:
            what = "standard output" if file == _STDOUT else file
            raise UsageError(f"{taken[place]} and {option} both write to {what}", advice="name another file")
        taken[place] = option
        if file != _STDOUT and any(_same_file(Path(file), capture) for capture in captures):
            raise UsageError(f"{option} {file} would overwrite the capture", advice="name another file")


def _baseline(path: Path) -> tuple[Past, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(
            f"--baseline {path}: cannot be read: {(error.strerror or str(error)).lower()}"
        ) from error
    except UnicodeDecodeError:
        text = ""
    return read_baseline(text, str(path))


def _compared(
    analysis: Analysis,
    past: Sequence[Past] | None,
    path: Path | None,
    chosen: tuple[str, ...],
    ignored: tuple[str, ...],
) -> Compared | None:
    """The findings against those of a baseline that were asked for too."""
    if past is None:
        return None
    asked = [
        one
        for one in past
        if (not chosen or one.code.startswith(chosen)) and not (ignored and one.code.startswith(ignored))
    ]
    return compare(analysis.findings, asked, str(path), skipped={rule.code for rule in analysis.skipped})


def _codes(option: str, given: Sequence[str] | None) -> tuple[str, ...]:
    """Codes, beginnings of codes and numbered findings (ITS401-2), by commas or by repeating the option."""
    codes = [code.strip().upper() for text in given or () for code in text.split(",") if code.strip()]
    for code in codes:
        begin, dash, number = code.partition("-")
        if dash and not (number.isdecimal() and begin in all_rules()):
            raise UsageError(
                f"{option} {code}: no finding is called so",
                advice=f"{option} ITS401-2, for the second of ITS401",
            )
        if not any(known.startswith(begin) for known in all_rules()):
            raise UsageError(
                f"{option} {code}: no rule has a code that begins so", advice="itstrace rules, for all codes"
            )
    if given and not codes:
        raise UsageError(f"{option} names no code", advice=f"{option} ITS3,ITS401")
    return tuple(codes)


def _check_numbers(analysis: Analysis, given: dict[str, tuple[str, ...]], baseline: Path | None) -> None:
    """What is asked for by its number is there, and means the same on both sides of a comparison."""
    for option, codes in given.items():
        for code in (code for code in codes if "-" in code):
            if baseline is not None:
                raise UsageError(
                    f"{option} {code} with --baseline: findings of an earlier analysis are numbered otherwise",
                    advice=f"{option} {code.partition('-')[0]}",
                )
            if not filter_findings(analysis.findings, select=[code]):
                of_code = len(filter_findings(analysis.findings, select=[code.partition("-")[0]]))
                raise UsageError(
                    f"{option} {code}: this capture shows {of_code} of {code.partition('-')[0]}",
                    advice="without --select all are shown, with their numbers",
                )


def _same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _why(code: str) -> str:
    rule = all_rules().get(code)
    return "" if rule is None else rule.section("Why it matters")


def _save(option: str, path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="ascii")
    except OSError as error:
        raise UsageError(
            f"{option} {path}: cannot be written: {(error.strerror or str(error)).lower()}"
        ) from error
