"""Lines fit their sheet, whatever stands in them, and lose nothing that they need not lose."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from itstrace.report.layout import Column, Sheet, clean, cut, facts, join, table, wrap

_WIDTHS = st.integers(20, 200)


@given(st.text(), _WIDTHS)
@example("\U0001f3fb", 20)  # an emoji modifier alone: a word of no width
@example("\u2600\ufe0f" * 30, 20)  # each pair is wider than its two characters
def test_wrapped_text_fits_and_keeps_every_word(text: str, width: int) -> None:
    lines = list(wrap(text, width, first="  ", rest="    "))

    assert all(line.cell_len <= width for line in lines)
    assert all(line.plain.isprintable() for line in lines)
    assert "".join(line.plain for line in lines).replace(" ", "") == clean(text).plain.replace(" ", "")


def test_wrapping_breaks_between_words_and_indents_what_follows() -> None:
    lines = [line.plain for line in wrap("one two three four", 12, first="- ", rest="  ")]

    assert lines == ["- one two", "  three four"]


def test_wrapping_keeps_styles_where_they_were() -> None:
    lines = list(wrap(join("aaaa ", Text("bbbb", "red"), " cccc"), 10))

    assert [line.plain for line in lines] == ["aaaa bbbb", "cccc"]
    assert [(span.start, span.end, span.style) for span in lines[0].spans] == [(5, 9, "red")]
    assert lines[1].spans == []


@given(st.text(), st.integers(1, 40))
@example("\u2600\ufe0f" * 30, 20)
def test_a_cut_fits_and_says_so(text: str, width: int) -> None:
    whole = clean(text)
    short = cut(whole, width, "...")

    assert short.cell_len <= width
    assert short.plain == whole.plain or short.plain == "..."[:width] or short.plain.endswith("...")


def test_wide_characters_count_double() -> None:
    assert cut(Text("中文字符"), 7, "...").plain == "中文..."
    assert [line.plain for line in wrap("中文字 符中文字", 12, first="  ")] == ["  中文字", "  符中文字"]


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), max_size=5), st.integers(48, 200), st.booleans())
def test_a_table_never_leaves_its_sheet(rows: list[tuple[str, str, str]], width: int, flow: bool) -> None:
    columns = [
        Column("number", right=True, give=1),
        Column("name", give=2),
        Column("text", give=3, flow=flow),
    ]
    lines = list(table(Sheet(width), columns, rows))

    assert len(lines) >= 1 + len(rows)
    assert all(line.cell_len <= width and line.plain.isprintable() for line in lines)


def test_columns_give_in_the_order_of_their_will() -> None:
    columns = [Column("keep"), Column("first", give=2), Column("then", give=1)]
    row = ["k" * 10, "f" * 30, "t" * 30]

    wide, narrow, narrowest = (
        list(table(Sheet(width), columns, [row], indent=""))[1].plain for width in (74, 60, 40)
    )

    assert wide == "  ".join(row)
    assert narrow == f"{row[0]}  {'f' * 13}...  {row[2]}"
    assert narrowest == f"{row[0]}  {'f' * 5}...  {'t' * 15}..."


def test_a_pipe_cuts_nothing() -> None:
    row = ["x" * 500, "y" * 500]

    lines = [
        line.plain for line in table(Sheet(), [Column("a", give=1), Column("b", flow=True)], [row], indent="")
    ]

    assert lines[1] == "  ".join(row)


def test_a_flowing_column_goes_on_under_itself() -> None:
    lines = [
        line.plain
        for line in table(
            Sheet(30), [Column("at"), Column("what", flow=True)], [["1", "one two three four five six"]]
        )
    ]

    assert lines == ["  at  what", "  1   one two three four five", "      six"]


def test_more_rows_than_shown_are_counted() -> None:
    lines = [
        line.plain
        for line in table(Sheet(), [Column("n")], [[str(n)] for n in range(340)], show=12, more="ask for all")
    ]

    assert len(lines) == 1 + 12 + 1
    assert lines[-1] == "  12 of 340 shown, ask for all"


def test_facts_align_and_leave_out_what_is_empty() -> None:
    lines = [
        line.plain for line in facts(Sheet(40), [("file", "a.dat"), ("nothing", ""), ("kernel", "6.12 " * 8)])
    ]

    assert lines[0] == "  file    a.dat"
    assert lines[1].startswith("  kernel  6.12 6.12")
    assert lines[2].startswith("          6.12")
    assert all(cell_len(line) <= 40 for line in lines)


def test_markup_is_text() -> None:
    assert clean("[bold red]x[/]").plain == "[bold red]x[/]"
    assert clean("[bold red]x[/]").spans == []


def test_styled_text_with_hostile_characters_is_cleaned_and_keeps_its_style() -> None:
    cleaned = clean(Text("a\x1bb", "red"))

    assert cleaned.plain == "a\\x1bb"
    assert cleaned.style == "red"
