"""The catalogue of rules and a rule's page, as lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

from rich.text import Text

from itstrace.report.finding import KINDS, STYLES
from itstrace.report.layout import Cell, Column, Sheet, clean, facts, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from itstrace.findings import Kind, Severity
    from itstrace.rules import Setting

#: What the codes of one hundred are about.
_FAMILIES: Final = {
    "ITS1": "the guest's commands",
    "ITS2": "KVM's state departs from the commands",
    "ITS3": "the life of an LPI",
    "ITS4": "affinity",
    "ITS5": "direct injection",
    "ITS6": "save and restore",
    "ITS9": "the capture itself",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """What is shown of one rule. `page` is Markdown; `origin` the module that brings it, if it is none of ours."""

    code: str
    name: str
    kind: Kind
    severity: Severity
    needs: tuple[str, ...]
    summary: str
    page: str
    suspect: tuple[str, ...] = ()
    guest_sees: str = ""
    leads_to: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    origin: str = ""


def catalogue(sheet: Sheet, entries: Sequence[Entry]) -> Iterator[Text]:
    """One line a rule, in groups of what they are about."""
    columns = [Column("code", style="bold"), Column("name"), Column("usually"), Column("finds", flow=True)]
    for at, (family, members) in enumerate(groupby(entries, key=lambda entry: entry.code[:4])):
        group = list(members)
        if at:
            yield Text()
        origins = dict.fromkeys(entry.origin for entry in group if entry.origin)
        yield sheet.rule(f"{family}xx", _FAMILIES.get(family) or f"from {', '.join(origins)}")
        rows: list[list[Cell]] = [
            [e.code, e.name, Text(str(e.severity), STYLES[e.severity]), e.summary] for e in group
        ]
        yield from table(sheet, columns, rows)


def page(sheet: Sheet, entry: Entry, others: Sequence[Entry] = ()) -> Iterator[Text]:
    """A rule's page: its head, its Markdown set for the sheet, then what it declares. `others`: all rules."""
    yield sheet.rule(f"{entry.code} {entry.name}", f"{entry.severity}, {KINDS[entry.kind]}")
    yield Text()
    yield from _markdown(sheet, entry.page)
    declared = [(label, text) for label, text in declares(entry, others) if text]
    if declared:
        yield Text()
        yield from facts(sheet, declared, indent="")
    if entry.settings:
        yield Text()
        yield Text("Settings", "bold")
        columns = [Column("name", style="bold"), Column("default", right=True), Column("meaning", flow=True)]
        yield from table(sheet, columns, [[s.name, f"{s.default:g}", s.meaning] for s in entry.settings])
        yield from sheet.wrap(f"itstrace analyze --set {entry.settings[0].name}=VALUE", first="  ")


def declares(entry: Entry, others: Sequence[Entry]) -> list[tuple[str, str]]:
    """What a rule declares about its findings, label and words; empty words for nothing."""
    names = {other.code: f"{other.code} {other.name}" for other in others}
    causes = [names[other.code] for other in others if entry.code in other.leads_to]
    return [
        ("needs", ", ".join(entry.needs)),
        ("guest sees", entry.guest_sees),
        ("suspect", ", ".join(entry.suspect)),
        ("follows from", ", ".join(causes)),
        ("leads to", ", ".join(names.get(code, code) for code in entry.leads_to)),
        ("from", entry.origin),
    ]


def _markdown(sheet: Sheet, text: str) -> Iterator[Text]:
    """Headings, paragraphs, lists and code of our own pages; nothing else occurs in them."""
    for at, block in enumerate(re.split(r"\n\s*\n", text.strip("\n"))):
        if at:
            yield Text()
        lines = block.split("\n")
        if lines[0].startswith("#"):
            yield Text(lines[0].lstrip("# "), "bold")
            lines = lines[1:]
        yield from _block(sheet, lines)


def _block(sheet: Sheet, lines: Sequence[str]) -> Iterator[Text]:
    if any(line.startswith("    ") for line in lines[:1]) or any(line.startswith("|") for line in lines):
        for line in lines:  # code or a table: as it stands
            yield clean(line)
        return
    items: list[list[str]] = []
    for line in lines:
        if re.match(r"[-*] ", line) or not items:
            items.append([line])
        else:
            items[-1].append(line.strip())
    for item in items:
        joined = " ".join(item)
        if joined.startswith(("- ", "* ")):
            yield from sheet.wrap(_inline(joined[2:]), first="  - ", rest="    ")
        elif joined:
            yield from sheet.wrap(_inline(joined))


def _inline(text: str) -> Text:
    """`code` and **strong** words."""
    line = Text()
    for part in re.split(r"(`[^`]+`|\*\*[^*]+\*\*)", text):
        if part.startswith("`") and len(part) > 2:
            line.append(part[1:-1], "cyan")
        elif part.startswith("**") and len(part) > 4:
            line.append(part[2:-2], "bold")
        else:
            line.append(part)
    return line
