"""`itstrace rules`: the catalogue, and the page of each rule."""

from typing import Annotated, Any

import typer

from itstrace._version import __version__
from itstrace.cli.options import AsJson
from itstrace.cli.output import Output
from itstrace.errors import UsageError
from itstrace.report.catalogue import Entry, catalogue, page
from itstrace.rules import HEADINGS, RULES

_SCHEMA = "itstrace.rules/1"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="rules", short_help="List what can be found; with a CODE, explain that rule.")(_rules)


def _rules(
    code: Annotated[str | None, typer.Argument(metavar="CODE", help="A rule: ITS401, or its name.")] = None,
    *,
    json: AsJson = False,
) -> None:
    """List all rules; with a CODE, print its page: what it finds, why it matters, what to do."""
    out = Output()
    entries = [Entry(r.code, r.name, r.kind, r.severity, r.needs, r.summary, r.page) for r in RULES.values()]
    if code is None:
        chosen = entries
    else:
        chosen = [entry for entry in entries if code.upper() == entry.code or code.lower() == entry.name]
        if not chosen:
            raise UsageError(f"there is no rule {code}", advice="itstrace rules, for all of them")
    if json:
        documents = [_document(entry, whole=code is not None) for entry in chosen]
        out.json({"schema": _SCHEMA, "version": __version__, "rules": documents})
    elif code is None:
        out.lines(catalogue(out.sheet, chosen))
    else:
        out.lines(page(out.sheet, chosen[0]))
    out.close()


def _document(entry: Entry, *, whole: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "code": entry.code,
        "name": entry.name,
        "kind": str(entry.kind),
        "severity": str(entry.severity),
        "needs": list(entry.needs),
        "summary": entry.summary,
    }
    if whole:
        found["page"] = entry.page
        found["sections"] = {heading: RULES[entry.code].section(heading) for heading in HEADINGS}
    return found
