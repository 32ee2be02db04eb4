"""`itstrace rules`: the catalogue, and the page of each rule."""

from typing import Annotated, Any

import typer

from itstrace._version import __version__
from itstrace.cli.options import AsJson
from itstrace.cli.output import Output
from itstrace.cli.running import tell_plugins
from itstrace.errors import UsageError
from itstrace.report.catalogue import Entry, catalogue, page
from itstrace.rules import HEADINGS, all_rules

_SCHEMA = "itstrace.rules/1"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="rules", short_help="List what can be found; with a CODE, explain that rule.")(_rules)


def entries() -> list[Entry]:
    """Every rule, as reports show it."""
    return [
        Entry(
            rule.code,
            rule.name,
            rule.kind,
            rule.severity,
            rule.needs,
            rule.summary,
            rule.page,
            rule.suspect,
            rule.guest_sees,
            rule.leads_to,
            rule.settings,
            rule.origin,
        )
        for rule in all_rules().values()
    ]


def _rules(
    code: Annotated[str | None, typer.Argument(metavar="CODE", help="A rule: ITS401, or its name.")] = None,
    *,
    json: AsJson = False,
) -> None:
    """List all rules; with a CODE, print its page: what it finds, why it matters, what to do, what can be set."""
    out = Output()
    tell_plugins()
    every = entries()
    if code is None:
        chosen = every
    else:
        chosen = [entry for entry in every if code.upper() == entry.code or code.lower() == entry.name]
        if not chosen:
            raise UsageError(f"there is no rule {code}", advice="itstrace rules, for all of them")
    if json:
        documents = [_document(entry, whole=code is not None) for entry in chosen]
        out.json({"schema": _SCHEMA, "version": __version__, "rules": documents})
    elif code is None:
        out.lines(catalogue(out.sheet, chosen))
    else:
        out.lines(page(out.sheet, chosen[0], every))
    out.close()


def _document(entry: Entry, *, whole: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "code": entry.code,
        "name": entry.name,
        "kind": str(entry.kind),
        "severity": str(entry.severity),
        "needs": list(entry.needs),
        "summary": entry.summary,
        "suspect": list(entry.suspect),
        "guest_sees": entry.guest_sees,
        "leads_to": list(entry.leads_to),
        "settings": [
            {"name": one.name, "default": one.default, "meaning": one.meaning} for one in entry.settings
        ],
        "origin": entry.origin,
    }
    if whole:
        rule = all_rules()[entry.code]
        found["page"] = entry.page
        found["sections"] = {heading: rule.section(heading) for heading in HEADINGS}
    return found
