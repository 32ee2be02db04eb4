"""The catalogue of rules and a rule's page, as lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

from rich.text import Text

from itstrace.report.finding import KINDS, STYLES
from itstrace.report.layout import Cell, Column, Sheet, clean, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from itstrace.findings import Kind, Severity

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
    """What is shown of one rule. `page` is Markdown."""

    code: str
    name: str
    kind: Kind
    severity: Severity
    needs: tuple[str, ...]
    summary: str
    page: str


def catalogue(sheet: Sheet, entries: Sequence[Entry]) -> Iterator[Text]:
    """One line a rule, in groups of what they are about."""
    columns = [Column("code", style="bold"), Column("name"), Column("usually"), Column("finds", flow=True)]
    for at, (family, group) in enumerate(groupby(entries, key=lambda entry: entry.code[:4])):
        if at:
            yield Text()
        yield sheet.rule(f"{family}xx", _FAMILIES.get(family, ""))
        rows: list[list[Cell]] = [
            [e.code, e.name, Text(str(e.severity), STYLES[e.severity]), e.summary] for e in group
        ]
        yield from table(sheet, columns, rows)


def page(sheet: Sheet, entry: Entry) -> Iterator[Text]:
    """A rule's page: its head, then its Markdown set for the sheet."""
    yield sheet.rule(f"{entry.code} {entry.name}", f"{entry.severity}, {KINDS[entry.kind]}")
    yield Text()
    yield from _markdown(sheet, entry.page)
    if entry.needs:
        yield Text()
        yield from sheet.wrap(Text(f"Needs {', '.join(entry.needs)}.", "dim"))


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
