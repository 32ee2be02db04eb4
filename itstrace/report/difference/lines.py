"""Two captures side by side as lines, for a terminal or a pipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from rich.text import Text

from itstrace.report.difference.parts import SAME, Grid, Line, Pair, Part, Stages, Told
from itstrace.report.difference.sections import sections
from itstrace.report.difference.verdict import overview, verdict
from itstrace.report.finding import STYLES
from itstrace.report.layout import Column, facts, join, table, wrap
from itstrace.report.text import number, plain
from itstrace.units import duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from itstrace.difference import Difference
    from itstrace.report.layout import Sheet

#: Rows of each table that a report on a terminal shows.
ROWS_SHOWN: Final = 20
_TONES: Final = {
    "error": "bold red",
    "warning": "bold yellow",
    "note": "bold cyan",
    "good": "bold green",
    "counts": "bold",
    "dim": "dim",
}
_COLUMNS: Final = ("stage", "in", "MSIs", "p50", "p99", "max", "in B")


def difference_lines(sheet: Sheet, different: Difference, show: int | None = ROWS_SHOWN) -> Iterator[Text]:
    """The whole report; at most `show` rows of a table (None: all)."""
    for told in verdict(different):
        yield from sheet.wrap(Text(plain(told.text), _TONES.get(told.tone, "")))
    yield Text()
    file = different.recorded.facts[0]
    rows = [("A", str(file.a)), ("B", str(file.b))]
    rows += [
        (label if at == 0 else "", line)
        for label, lines in overview(different)
        for at, line in enumerate(lines)
    ]
    yield from facts(sheet, rows)
    for section in sections(different):
        yield Text()
        yield sheet.rule(section.title, section.note)
        if section.rule:
            yield from sheet.wrap(Text(section.rule, "dim"), first="  ")
        for part in section.parts:
            yield from _part(sheet, part, show)


def _part(sheet: Sheet, part: Part, show: int | None) -> Iterator[Text]:
    if isinstance(part, Told):
        if part.tone == "shell":
            yield from _call(sheet, f"  {part.head}{plain(part.text)}")
            return
        yield from sheet.wrap(Text(plain(part.text), _TONES.get(part.tone, "")), first=f"  {part.head}")
    elif isinstance(part, Pair):
        yield from _pair(sheet, part)
    elif isinstance(part, Stages):
        yield from _grid(sheet, _latencies(part), show)
    else:
        yield from _grid(sheet, part, show)


def _call(sheet: Sheet, call: str) -> Iterator[Text]:
    """A call to be copied: in one line, or in two that the shell joins."""
    if sheet.width is None or cell_len(call) <= sheet.width:
        yield Text(call)
        return
    head, option, rest = call.rpartition(" --select ")
    for line in (f"{head} \\", f"    {option}{rest}"):
        yield from wrap(line, sheet.width, first=" " * (len(line) - len(line.lstrip())))


def _pair(sheet: Sheet, pair: Pair) -> Iterator[Text]:
    badge = Text(str(pair.severity).upper(), STYLES[pair.severity])
    yield from sheet.wrap(
        join(
            Text(f"{pair.change}: ", "bold"), badge, Text(f" {plain(pair.title)}", "bold"), f" ({pair.kind})"
        ),
        first="  ",
        rest="    ",
    )
    for name, side in (("A", pair.a), ("B", pair.b)):
        if side is None:
            continue
        head = f"    {name}  "
        bad = f"{str(side.severity).upper()}, " if pair.a and pair.b else ""
        said = ", ".join(filter(None, (side.about, side.when, side.confidence)))
        yield from sheet.wrap(Text(plain(bad + said), "bold"), first=head)
        yield from sheet.wrap(side.message, first=" " * len(head))


def _latencies(stages: Stages) -> Grid:
    """A line for each side of each stage: what is to be compared stands one above the other."""
    lines = []
    for stage in stages.stages:
        for side, spread in (("A", stage.a), ("B", stage.b)):
            figures = (spread.p50_ns, spread.p99_ns, spread.max_ns)
            spans = [duration(one) if spread.count else "" for one in figures]
            name, said = (stage.name, "") if side == "A" else ("", stage.said)
            lines.append(Line((name, side, number(spread.count), *spans, said), stage.counts))
    return Grid(stages.title, _COLUMNS, tuple(lines), left=frozenset({0, 1, 6}))


def _grid(sheet: Sheet, grid: Grid, show: int | None) -> Iterator[Text]:
    if grid.title:
        yield from sheet.wrap(Text(grid.title, "italic"), first="  ")
    last = len(grid.columns) - 1
    columns = [
        Column(title, right=at not in grid.left and at != last, give=1 if at == grid.give else 0)
        for at, title in enumerate(grid.columns)
    ]
    if last in grid.left and last > 1:
        columns[last] = Column(grid.columns[last], flow=True)
    rows = [
        [Text(plain(cell), "bold" if line.counts else "dim" if cell == SAME else "") for cell in line.cells]
        for line in grid.lines
    ]
    yield from table(sheet, columns, rows, show=show, more="--limit 0 for all")
