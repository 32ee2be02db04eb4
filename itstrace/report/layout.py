"""Lines of styled text for a terminal of some width, or for a pipe.

Theory of operation. A report is an iterable of `Text`, one per line, never with a line break in it. A
`Sheet` says where they go: how wide (None: a pipe, where nothing is cut or wrapped but prose) and whether
the fine characters may be used. Whatever text comes in is made `plain` here, so neither markup nor control
characters of a capture get any further; styles are put on by our own code alone.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len
from rich.text import Text

from itstrace.report.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

#: Prose is wrapped here in a pipe, and is never wider than `PROSE_MAX` on a terminal.
PROSE_PIPED: Final = 80
PROSE_MAX: Final = 110
_GAP: Final = "  "
#: A column that flows is not made narrower than this.
_FLOW_MIN: Final = 20
#: Characters that are looked at per column: letters with marks, emoji that are joined, take several.
_JOINED: Final = 8

Cell = str | Text


@dataclass(frozen=True, slots=True)
class Sheet:
    """Where lines go: a terminal of `width`, or a pipe (None); `fine`: it shows more than ASCII."""

    width: int | None = None
    fine: bool = False

    @property
    def prose(self) -> int:
        """How wide running text is set."""
        return PROSE_PIPED if self.width is None else min(self.width, PROSE_MAX)

    @property
    def arrow(self) -> str:
        """From this to that."""
        return "\u2192" if self.fine else "->"

    @property
    def dots(self) -> str:
        """Something was cut here."""
        return "\u2026" if self.fine else "..."

    def wrap(self, text: Cell, *, first: str = "", rest: str | None = None) -> Iterator[Text]:
        """Running text; in a pipe a word that no line can hold stays whole."""
        return wrap(text, self.prose, first=first, rest=rest, whole=self.width is None)

    def rule(self, title: str, note: Cell = "") -> Text:
        """A heading that spans the sheet."""
        line = join(Text(title, "bold"), "  " if cell_len(str(note)) else "", clean(note))
        if self.width is None:
            return line
        if not self.fine or line.cell_len > self.prose:
            return cut(line, self.prose, self.dots)
        rest = self.prose - line.cell_len - 1
        return line.append(" " + "\u2500" * rest, "dim") if rest > 2 else line


def clean(cell: Cell, style: str = "") -> Text:
    """One cell as safe text."""
    if isinstance(cell, str):
        return Text(plain(cell), style)
    if cell.plain.isprintable():
        return cell
    safe = Text(style=cell.style)
    for at, char in enumerate(cell.plain):
        safe.append(plain(char), _style_at(cell, at))
    return safe


def _style_at(text: Text, at: int) -> str:
    return " ".join(str(span.style) for span in text.spans if span.start <= at < span.end)


def join(*cells: Cell) -> Text:
    """Cells one after the other, safe."""
    line = Text()
    for cell in cells:
        line.append_text(clean(cell))
    return line


def cut(text: Text, width: int, dots: str) -> Text:
    """The text in at most `width` columns, with `dots` where something is missing."""
    if text.cell_len <= width:
        return text
    if width <= len(dots):
        return Text(dots[:width], text.style)
    short = text[: _fitting(text.plain, width - len(dots))]
    if short.cell_len > width - len(dots):  # not even one character
        short = text[:0]
    short.append(dots)
    return short


def wrap(
    text: Cell, width: int, *, first: str = "", rest: str | None = None, whole: bool = False
) -> Iterator[Text]:
    """Words into lines of `width`, indented by `first` and then by `rest`; longer words are broken, if not `whole`."""
    first = plain(first)
    rest = " " * cell_len(first) if rest is None else rest
    source = clean(text)
    words = _words(source.plain)
    indent, room = first, max(width - cell_len(first), 10)
    start = line_end = 0
    begun = False  # a line; it may hold words and still be of no width, as a lone emoji modifier is
    for begin, end in words:
        if begun and cell_len(source.plain[start:end]) > room:
            yield _indented(indent, source[start:line_end])
            indent, room, begun = rest, max(width - cell_len(rest), 10), False
        if not begun:
            start = begin
        while not whole and cell_len(source.plain[start:end]) > room:  # a word that no line can hold
            stop = start + _fitting(source.plain[start:end], room)
            yield _indented(indent, source[start:stop])
            indent, room, start = rest, max(width - cell_len(rest), 10), stop
        begun, line_end = True, end
    if begun or not words:
        yield _indented(indent, source[start:line_end])


def _words(text: str) -> list[tuple[int, int]]:
    found, at = [], 0
    for word in text.split(" "):
        if word:
            found.append((at, at + len(word)))
        at += len(word) + 1
    return found


def _fitting(text: str, width: int) -> int:
    """How many characters of a text fit; one at least, so that there is an end.

    A beginning is measured as a whole: characters may join into one of another width.
    """
    most = (
        bisect_right(range(min(len(text), width * _JOINED) + 1), width, key=lambda n: cell_len(text[:n])) - 1
    )
    return max(most, 1)


def _indented(indent: str, text: Text) -> Text:
    return Text(indent).append_text(text)


def facts(
    sheet: Sheet, rows: Iterable[tuple[str, Cell]], *, indent: str = "  ", label: int = 0
) -> Iterator[Text]:
    """Labels with what they say, the values aligned and wrapped."""
    rows = [(plain(name), value) for name, value in rows if str(value)]
    label = label or max((cell_len(name) for name, _ in rows), default=0)
    for name, value in rows:
        head = indent + name + " " * (label - cell_len(name)) + _GAP
        for at, line in enumerate(sheet.wrap(value, first=head, rest=" " * cell_len(head))):
            if at == 0:
                line.stylize("dim", len(indent), len(indent) + len(name))
            yield line


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table.

    `give`: may be cut where the sheet is too narrow, the largest first. `flow` (the last column only): goes
    on under itself instead.
    """

    title: str
    right: bool = False
    style: str = ""
    give: int = 0
    flow: bool = False


def table(
    sheet: Sheet,
    columns: Sequence[Column],
    rows: Iterable[Sequence[Cell]],
    *,
    indent: str = "  ",
    show: int | None = None,
    more: str = "",
) -> Iterator[Text]:
    """Rows under their titles, cut to the sheet; at most `show`, then how many there are, and `more`."""
    cells = [[clean(cell, column.style) for cell, column in zip(row, columns, strict=True)] for row in rows]
    shown = cells if show is None or len(cells) <= show else cells[:show]
    widths = [max(cell_len(c.title), *(row[i].cell_len for row in shown), 0) for i, c in enumerate(columns)]
    if sheet.width is not None:
        room = sheet.width - len(indent) - len(_GAP) * (len(columns) - 1)
        whole = widths[-1]
        if columns[-1].flow:
            widths[-1] = min(whole, _FLOW_MIN)
        _squeeze(widths, columns, room)
        if columns[-1].flow:
            widths[-1] = min(whole, max(room - sum(widths[:-1]), _FLOW_MIN))
    yield _row(sheet, columns, widths, [clean(c.title, "dim") for c in columns], indent)
    flows = columns[-1].flow and sheet.width is not None
    for row in shown:
        if flows:
            yield from _flowing(sheet, columns, widths, row, indent)
        else:
            yield _row(sheet, columns, widths, row, indent)
    if len(shown) < len(cells):
        note = f"{len(shown):,} of {len(cells):,} shown"
        yield from sheet.wrap(Text(f"{note}, {more}" if more else note, "dim italic"), first=indent)


def _squeeze(widths: list[int], columns: Sequence[Column], room: int) -> None:
    """Take from columns that can give, the widest of the most willing first, down to eight or the title."""
    over = sum(widths) - room
    for willing in sorted({c.give for c in columns if c.give}, reverse=True):
        group = [i for i, c in enumerate(columns) if c.give == willing and not c.flow]
        while over > 0:
            i = max(group, key=lambda i: widths[i], default=None)
            if i is None or widths[i] <= max(8, cell_len(columns[i].title)):
                break
            widths[i] -= 1
            over -= 1


def _flowing(
    sheet: Sheet, columns: Sequence[Column], widths: list[int], cells: Sequence[Text], indent: str
) -> Iterator[Text]:
    at = len(indent) + sum(widths[:-1]) + len(_GAP) * (len(columns) - 1)
    for number, part in enumerate(wrap(cells[-1], widths[-1])):
        if number:
            yield Text(" " * at).append_text(part)
        else:
            yield _row(sheet, columns, widths, [*cells[:-1], part], indent)


def _row(
    sheet: Sheet, columns: Sequence[Column], widths: list[int], cells: Sequence[Text], indent: str
) -> Text:
    line = Text(indent)
    for i, (cell, column) in enumerate(zip(cells, columns, strict=True)):
        short = cut(cell, widths[i], sheet.dots)
        pad = " " * (widths[i] - short.cell_len)
        if i:
            line.append(_GAP)
        if column.right:
            line.append(pad)
        line.append_text(short)
        if not column.right and i + 1 < len(columns):
            line.append(pad)
    line.rstrip()
    return line if sheet.width is None else cut(line, sheet.width, sheet.dots)
