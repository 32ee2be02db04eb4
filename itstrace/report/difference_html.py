"""Two captures side by side as one HTML page: no script, no request, readable in light, in dark and on paper.

Everything that comes out of a capture is escaped, and control characters are spelled out as on a terminal. The content
security policy allows the page's own style, by its hash, and nothing else. Colours and type are those of the report.
"""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from functools import cache
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Final

from itstrace._version import __version__
from itstrace.difference import Change
from itstrace.findings import Severity
from itstrace.report.difference import overview, sections, verdict
from itstrace.report.difference.parts import SAME, Grid, Line, Pair, Side, Stage, Stages, Told
from itstrace.report.difference.tables import entries
from itstrace.report.difference.verdict import names
from itstrace.report.difference_drawing import Scale, axis, distribution, scale, shares, swatch
from itstrace.report.text import number, plain, plural
from itstrace.units import duration

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from itstrace.difference import Difference
    from itstrace.report.difference.parts import Section, Spread

#: Rows of one table that a page holds; `--json` has all.
ROWS: Final = 2000
#: Rows with drawings, which are a hundred times as large.
DRAWN: Final = 200
#: What stands for a severity besides its colour, as in the report.
_SHAPES: Final = {Severity.ERROR: "\u25c6", Severity.WARNING: "\u25b2", Severity.NOTE: "\u25cf"}
_CHANGES: Final = {"new in B": "+", "worse in B": "\u2191", "milder in B": "\u2193", "gone in B": "\u2212"}


def difference_page(different: Difference) -> str:
    """Both captures on one page."""
    file, named = different.recorded.facts[0], names(different)
    told = sections(different)
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        "<head>",
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_policy())}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">',
        f"<title>{_text(named[0])} and {_text(named[1])} - itstrace diff</title>",
        f"<style>{_style()}</style>",
        "</head>",
        "<body>",
        '<div class="bar"><span class="brand"><span class="logo" aria-hidden="true"></span>itstrace diff</span>',
        '<nav aria-label="Sections">',
        *(f'<a href="#{_anchor(section)}">{_text(section.title)}</a>' for section in told),
        "</nav></div>",
        "<header>",
        *_saying(different),
        '<div class="captures">',
        *(
            f"<p>{_letter(side)}<span>{_text(str(path))}</span></p>"
            for side, path in (("A", file.a), ("B", file.b))
        ),
        "</div>",
        *_tiles(different),
        *_overview(different),
        "</header>",
        "<main>",
        *_laid_out(told),
        "</main>",
        f"<footer>itstrace {_text(__version__)}. Rows marked with &ne; are differences that count.</footer>",
        "</body>",
        "</html>",
    ]
    return "\n".join(parts) + "\n"


# --- the head of the page


def _saying(different: Difference) -> Iterator[str]:
    """The verdict: its first sentence is the title, but for one that says that the guests are different."""
    told = list(verdict(different))
    yield '<div class="saying">'
    if different.guests.different:
        first = told.pop(0)
        yield f'<p class="{first.tone}">{_shape(Severity.WARNING)} {_text(first.text)}</p>'
    for at, each in enumerate(told):
        tag = "p" if at else "h1"
        shape = f"{_shape(Severity.WARNING)} " if at and each.tone == "warning" else ""
        tone = f' class="{each.tone}"' if each.tone else ""
        yield f"<{tag}{tone}>{shape}{_text(each.text)}</{tag}>"
    yield "</div>"


def _tiles(different: Difference) -> Iterator[str]:
    """How many differences of each kind count."""
    changes = Counter(one.change for one in different.findings if one.differs)
    fresh = [one for one in different.findings if one.differs and one.change in {Change.NEW, Change.WORSE}]
    worst = min((one.severity for one in fresh), key=lambda severity: severity.rank, default=None)
    counted, rows = different.counted, len(entries(different))
    new, gone = len(fresh), changes[Change.GONE] + changes[Change.MILDER]
    tiles = (
        ("findings", new, ("finding", "findings"), "new or worse in B", worst),
        ("findings", gone, ("finding", "findings"), "gone or milder in B", None),
        ("outcomes", counted["outcomes"], ("share of MSIs differs", "shares of MSIs differ"), "", None),
        ("latency", counted["latencies"], ("latency differs", "latencies differ"), "", None),
        ("tables", rows, ("table entry differs", "table entries differ"), "", None),
    )
    yield '<div class="tiles">'
    for anchor, count, (one, many), more, severity in tiles:
        words = f"{one if count == 1 else many} {more}".rstrip()
        shape = f"{_shape(severity)} " if severity is not None else ""
        tone = "zero" if not count else str(severity or "")
        yield f'<a class="tile {tone}" href="#{anchor}"><span class="count">{shape}{count:,}</span><span>{words}</span></a>'
    yield "</div>"


def _overview(different: Difference) -> Iterator[str]:
    rows = overview(different)
    if not rows:
        return
    yield '<div class="card"><dl class="facts">'
    for label, lines in rows:
        warns = _shape(Severity.WARNING) + " " if label == "not compared" else ""
        yield f"<dt>{warns}{_text(label)}</dt>" + "".join(f"<dd>{_marked(line)}</dd>" for line in lines)
    yield "</dl></div>"


def _marked(line: str) -> str:
    """A line with its severity, if it begins with one, as a badge."""
    first, _, rest = line.partition(" ")
    severity = next((one for one in Severity if first == one.upper()), None)
    return _text(line) if severity is None else f"{_badge(severity)} {_text(rest)}"


# --- sections


def _laid_out(told: Sequence[Section]) -> Iterator[str]:
    """Sections in their order; the last three stand side by side where there is room."""
    *first, rates, tables, recorded = told
    for section in first:
        yield from _section(section)
    yield '<div class="columns full">'
    yield from _section(rates)
    yield '<div class="stack">'
    yield from _section(tables)
    yield from _section(recorded)
    yield "</div></div>"


def _section(section: Section) -> Iterator[str]:
    anchor = _anchor(section)
    full = " full" if anchor == "findings" else ""
    yield f'<section class="card{full}" id="{anchor}" aria-labelledby="{anchor}-title">'
    yield f'<div class="head"><h2 id="{anchor}-title">{_text(section.title)}</h2>'
    yield f'<span class="dim">{_text(section.note)}</span></div>'
    if section.rule:
        yield f'<p class="rule">{_text(section.rule)}</p>'
    for part in section.parts:
        if isinstance(part, Told):
            tones = " ".join(filter(None, (part.tone, "item" if part.head == "- " else "")))
            yield f'<p class="{tones}">{_text(part.text)}</p>' if tones else f"<p>{_text(part.text)}</p>"
        elif isinstance(part, Pair):
            yield from _pair(part)
        elif isinstance(part, Stages):
            yield from _stages(part)
        else:
            yield from _grid(part, section.title)
    yield "</section>"


def _pair(pair: Pair) -> Iterator[str]:
    """A cause in A and in B, side by side."""
    alone = " one" if pair.a is None or pair.b is None else ""
    yield f'<article class="finding {pair.severity}">'
    mark = _CHANGES.get(pair.change, "")
    yield (
        f'<h3><span class="badge change"><span aria-hidden="true">{mark}</span>{_text(pair.change)}</span>'
        f'{_badge(pair.severity)}<span>{_text(pair.title)}</span><span class="dim">{_text(pair.kind)}</span></h3>'
    )
    if pair.meaning:
        yield f"<p>{_text(pair.meaning)}</p>"
    yield f'<div class="both{alone}">{_side("A", pair.a, pair)}{_side("B", pair.b, pair)}</div>'
    yield "</article>"


def _side(name: str, side: Side | None, pair: Pair) -> str:
    if side is None:
        return f'<div class="without">{_letter(name)}<p class="dim">not found</p></div>'
    badge = f"{_badge(side.severity)} " if pair.a and pair.b else ""
    said = ", ".join(filter(None, (side.about, side.when, side.confidence)))
    return f'<div>{_letter(name)}<div><p class="about">{badge}{_text(said)}</p><p>{_text(side.message)}</p></div></div>'


# --- tables


def _grid(grid: Grid, within: str) -> Iterator[str]:
    drawn = any(line.shares is not None for line in grid.lines)
    heads = "".join(
        f'<th scope="col"{_class(grid, at)}>{_text(title)}</th>' if title else f"<td{_class(grid, at)}></td>"
        for at, title in enumerate(grid.columns)
    )
    heads += '<th scope="col" class="left">A above B</th>' if drawn else ""
    if grid.folded:
        yield f"<details><summary>{plural(len(grid.lines), 'row')}</summary>"
    yield from _opened(grid.title, grid.title or within)
    yield f"<thead><tr>{heads}</tr></thead>"
    yield "<tbody>"
    for line in grid.lines[:ROWS]:
        yield _line(grid, line)
    yield "</tbody></table>"
    if len(grid.lines) > ROWS:
        yield f'<p class="dim">{ROWS:,} of {len(grid.lines):,} rows; --json has all.</p>'
    yield "</div>"
    if grid.folded:
        yield "</details>"


def _opened(title: str, name: str, kind: str = "") -> Iterator[str]:
    """A box that scrolls must be reachable by keyboard, and so must be named."""
    yield f'<div class="wide" role="region" tabindex="0" aria-label="{_text(name)}">'
    yield f'<table class="{kind}">' if kind else "<table>"
    if title:
        yield f"<caption>{_text(title)}</caption>"


def _line(grid: Grid, line: Line) -> str:
    first, *rest = line.cells
    step = " step" if first.startswith(" ") else ""
    head = f'<th scope="row" class="left{step}">{_text(first)}</th>' if first.strip() else "<td></td>"
    cells = "".join(
        f"<td{_class(grid, at, cell)}>{_badge(Severity(cell)) if grid.columns[at] == 'severity' else _text(cell)}</td>"
        for at, cell in enumerate(rest, 1)
    )
    drawn = f'<td class="drawn">{shares(*line.shares)}</td>' if line.shares is not None else ""
    return f"{_row(counts=line.counts)}{head}{cells}{drawn}</tr>"


def _row(*, counts: bool) -> str:
    return '<tr class="counts">' if counts else "<tr>"


def _class(grid: Grid, at: int, cell: str = "") -> str:
    kinds = ["left"] if at in grid.left or at == len(grid.columns) - 1 else []
    kinds += ["dim"] if cell == SAME else []
    return f' class="{" ".join(kinds)}"' if kinds else ""


def _stages(stages: Stages) -> Iterator[str]:
    """Latencies: what is to be compared stands side by side, and drawn one over the other."""
    along = scale(stages)
    yield from _opened(stages.title, stages.title, "stages")
    groups = "".join(
        f'<th scope="colgroup" colspan="2" class="of">{name}</th>' for name in ("p50", "p99", "max", "MSIs")
    )
    sides = '<th scope="col">A</th><th scope="col">B</th>' * 4
    yield (
        '<thead><tr><th scope="col" rowspan="2" class="left">stage</th>'
        f'<th scope="col" class="left">distribution</th>{groups}<th scope="col" rowspan="2" class="left">in B</th></tr>'
        f'<tr><td class="drawn">{axis(along)}</td>{sides}</tr></thead>'
    )
    yield "<tbody>"
    for stage in stages.stages[:DRAWN]:
        yield _stage(stage, along)
    yield "</tbody></table>"
    if len(stages.stages) > DRAWN:
        yield f'<p class="dim">{DRAWN:,} of {len(stages.stages):,} rows; --json has all.</p>'
    yield "</div>"
    yield (
        f'<p class="legend"><span>{swatch("ofa")}A, above the line</span><span>{swatch("ofb")}B, below it</span>'
        "<span>solid mark: p50; dashed: p99; length of a wait in a logarithmic scale</span></p>"
    )


def _stage(stage: Stage, along: Scale) -> str:
    sides = (stage.a, stage.b)
    spans = "".join(
        f"<td>{_text(duration(span_ns)) if side.count else ''}</td>"
        for pick in (_p50, _p99, _max)
        for side, span_ns in ((each, pick(each)) for each in sides)
    )
    counts = "".join(f"<td>{number(side.count)}</td>" for side in sides)
    return (
        f'{_row(counts=stage.counts)}<th scope="row" class="left">{_text(stage.name)}</th>'
        f'<td class="drawn">{distribution(*sides, along)}</td>{spans}{counts}<td class="left">{_text(stage.said)}</td></tr>'
    )


def _p50(side: Spread) -> int | None:
    return side.p50_ns


def _p99(side: Spread) -> int | None:
    return side.p99_ns


def _max(side: Spread) -> int | None:
    return side.max_ns


# --- small things


def _shape(severity: Severity) -> str:
    return f'<span class="shape" aria-hidden="true">{_SHAPES[severity]}</span>'


def _badge(severity: Severity) -> str:
    return f'<span class="badge {severity}">{_shape(severity)}{severity}</span>'


def _letter(name: str) -> str:
    return f'<span class="side {name.lower()}">{name}</span>'


def _anchor(section: Section) -> str:
    return section.title.split()[0].lower()


def _text(text: str) -> str:
    """Text that stays text: control characters spelled out, markup escaped."""
    return escape(plain(text).strip(), quote=True)


@cache
def _style() -> str:
    """What the report and this page have in common, and the page's own rules."""
    assets = files("itstrace.report.html") / "assets"
    return "\n".join((assets / name).read_text(encoding="utf-8") for name in ("base.css", "difference.css"))


def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(_style().encode()).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
