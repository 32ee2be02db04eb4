"""Two captures side by side as one HTML page: no script, no request, readable in light, in dark and on paper.

Everything that comes out of a capture is escaped, and control characters are spelled out as on a terminal. The content
security policy allows the page's own style, by its hash, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from itstrace._version import __version__
from itstrace.report.difference import SAME, Grid, Line, Section, Told, sections, verdict
from itstrace.report.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.difference import Difference

#: Rows of one table that a page holds; `--json` has all.
ROWS: Final = 2000

_STYLE: Final = """
:root { --paper: #f7f7f5; --card: #fff; --ink: #1d2126; --dim: #5b6470; --line: #dfe1e4; --soft: #eef0f2;
  --error: #b3261e; --warning: #8a5a00; --note: #0a5d7a; --good: #1b6e45; --mark: #fff3c4; color-scheme: light; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1b1f24; --ink: #e4e7ea; --dim: #9aa4b0;
  --line: #31373f; --soft: #242930; --error: #ff9a8f; --warning: #f0c060; --note: #7cc7e4; --good: #7ed0a4; --mark: #423a1c;
  color-scheme: dark; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px; max-width: 1180px; background: var(--paper); color: var(--ink);
  font: 14px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 24px; line-height: 1.3; margin: 0 0 4px; }
h1.differs { color: var(--error); }
h1.same { color: var(--good); }
h2 { font-size: 17px; margin: 0; }
header p { margin: 0 0 6px; font-size: 16px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 12px; margin: 12px 0 0; }
dt { font-weight: 650; }
dd { margin: 0; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 14px 0 0; }
a { color: inherit; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 18px; margin-top: 16px; }
.about { color: var(--dim); margin: 0 0 8px; }
p { margin: 6px 0; max-width: 1000px; overflow-wrap: anywhere; }
p.under { margin-left: 18px; }
p.error { color: var(--error); font-weight: 650; margin-top: 12px; }
p.warning { color: var(--warning); font-weight: 650; margin-top: 12px; }
p.note { color: var(--note); font-weight: 650; margin-top: 12px; }
p.counts { font-weight: 650; }
p.dim, td.dim, .more { color: var(--dim); }
.wide { overflow-x: auto; margin: 10px 0; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--dim); padding: 4px 0; }
th, td { text-align: right; padding: 3px 14px 3px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; }
th { font-weight: 400; }
thead th { color: var(--dim); }
.left { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 60px; }
tbody th.left { min-width: 130px; }
tr.counts > * { background: var(--mark); font-weight: 650; }
tr.counts > :first-child::before { content: "\\2260\\a0"; }
tr.counts + tr.counts > :empty:first-child::before { content: ""; }
footer { color: var(--dim); margin-top: 18px; }
@media (max-width: 620px) { body { padding: 12px; } section { padding: 10px 12px; } }
@media print { body { max-width: none; padding: 0; background: #fff; } section { border: 0; padding: 0; break-inside: auto; }
  nav { display: none; } tr, p { break-inside: avoid; } thead { display: table-header-group; } .wide { overflow: visible; } }
"""


def difference_page(different: Difference) -> str:
    """Both captures on one page."""
    file = different.recorded.facts[0]
    names = [PurePath(str(path)).name for path in (file.a, file.b)]
    first, *rest = verdict(different)
    told = sections(different)
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_policy())}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{_text(names[0])} and {_text(names[1])} - itstrace diff</title>",
        f"<style>{_STYLE}</style>",
        "</head>",
        "<body>",
        "<header>",
        f'<h1 class="{"differs" if different.differs else "same"}">{_text(first)}</h1>',
        *(f"<p>{_text(sentence)}</p>" for sentence in rest),
        f"<dl><dt>A</dt><dd>{_text(str(file.a))}</dd><dt>B</dt><dd>{_text(str(file.b))}</dd></dl>",
        '<nav aria-label="Sections">',
        *(f'<a href="#{_anchor(section)}">{_text(section.title)}</a>' for section in told),
        "</nav>",
        "</header>",
        "<main>",
        *(line for section in told for line in _section(section)),
        "</main>",
        f"<footer>itstrace {_text(__version__)}. Rows marked with &ne; are differences that count.</footer>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


def _section(section: Section) -> Iterator[str]:
    anchor = _anchor(section)
    yield f'<section id="{anchor}" aria-labelledby="{anchor}-title">'
    yield f'<h2 id="{anchor}-title">{_text(section.title)}</h2>'
    yield f'<p class="about">{_text(section.note)}</p>'
    for part in section.parts:
        if isinstance(part, Told):
            names = " ".join(filter(None, (part.tone, "under" if part.head else "")))
            yield f'<p class="{names}">{_text(part.text)}</p>' if names else f"<p>{_text(part.text)}</p>"
        else:
            yield from _grid(part, section.title)
    yield "</section>"


def _grid(grid: Grid, within: str) -> Iterator[str]:
    # A box that scrolls must be reachable by keyboard, and so must be named.
    yield f'<div class="wide" role="region" tabindex="0" aria-label="{_text(grid.title or within)}">'
    yield "<table>"
    if grid.title:
        yield f"<caption>{_text(grid.title)}</caption>"
    heads = "".join(
        f'<th scope="col"{_class(grid, at)}>{_text(title)}</th>' if title else f"<td{_class(grid, at)}></td>"
        for at, title in enumerate(grid.columns)
    )
    yield f"<thead><tr>{heads}</tr></thead>"
    yield "<tbody>"
    for line in grid.lines[:ROWS]:
        yield _line(grid, line)
    yield "</tbody></table>"
    if len(grid.lines) > ROWS:
        yield f'<p class="more">{ROWS:,} of {len(grid.lines):,} rows; --json has all.</p>'
    yield "</div>"


def _line(grid: Grid, line: Line) -> str:
    first, *rest = line.cells
    head = f'<th scope="row"{_class(grid, 0)}>{_text(first)}</th>' if first.strip() else "<td></td>"
    cells = "".join(f"<td{_class(grid, at, cell)}>{_text(cell)}</td>" for at, cell in enumerate(rest, 1))
    row = '<tr class="counts">' if line.counts else "<tr>"
    return f"{row}{head}{cells}</tr>"


def _class(grid: Grid, at: int, cell: str = "") -> str:
    names = ["left"] if at in grid.left or at == len(grid.columns) - 1 else []
    names += ["dim"] if cell == SAME else []
    return f' class="{" ".join(names)}"' if names else ""


def _anchor(section: Section) -> str:
    return section.title.split()[0].lower()


def _text(text: str) -> str:
    """Text that stays text: control characters spelled out, markup escaped."""
    return escape(plain(text).strip(), quote=True)


def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
