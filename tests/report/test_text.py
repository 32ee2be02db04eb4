"""Values as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from itstrace.report.text import delta, hexa, known, listed, number, plain, plural, size
from itstrace.units import duration, seconds


@pytest.mark.parametrize(
    ("time_ns", "digits", "text"),
    [
        (572_870_490_000, 6, "572.870490"),
        (1_350_320_713_744, 6, "1350.320714"),  # as trace-cmd report prints it
        (1_350_320_713_744, 9, "1350.320713744"),
        (999_999_999_500, 6, "1000.000000"),
        (0, 6, "0.000000"),
        (-1_500_000, 6, "-0.001500"),
        (-1, 6, "0.000000"),
        (None, 6, "?"),
    ],
)
def test_times_are_those_that_the_trace_prints(time_ns: int | None, digits: int, text: str) -> None:
    assert seconds(time_ns, digits) == text


@pytest.mark.parametrize(
    ("span_ns", "text"),
    [
        (0, "0 ns"), (830, "830 ns"), (999, "999 ns"), (1000, "1.00 us"), (12_340, "12.3 us"), (17_524_000, "17.5 ms"),
        (999_499, "999 us"), (999_500, "1.00 ms"), (252_000_000, "252 ms"), (1_420_000_000, "1.42 s"),
        (9_995_000, "10.0 ms"), (99_950_000, "100 ms"),
        (95_000_000_000, "95.0 s"), (487_000_000_000, "487 s"), (-1500, "-1.50 us"), (None, "?"),
    ],
)  # fmt: skip
def test_spans_have_three_figures(span_ns: int | None, text: str) -> None:
    assert duration(span_ns) == text


def test_a_step_has_its_sign() -> None:
    assert (delta(1500), delta(-1500), delta(0), delta(None)) == ("+1.50 us", "-1.50 us", "+0 ns", "")


def test_unknown_is_never_zero() -> None:
    assert (hexa(None), number(None), known(None), seconds(None), duration(None)) == ("?",) * 5
    assert (hexa(0), number(0), known(0), known(value=False), known(value=True)) == (
        "0x0",
        "0",
        "0",
        "no",
        "yes",
    )


def test_counts_and_lists_read_as_words() -> None:
    assert (plural(1, "MSI"), plural(0, "MSI"), plural(1234, "delivery", "deliveries")) == (
        "1 MSI",
        "0 MSIs",
        "1,234 deliveries",
    )
    assert (listed([]), listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])) == (
        "",
        "a",
        "a and b",
        "a, b and c",
    )
    assert (size(812), size(1_375_899), size(0), size(3 << 40)) == ("812 B", "1.3 MiB", "0 B", "3.0 TiB")


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b31m", "\\x9b31m"),
        ("a\nb\tc\rd", "a\\nb\\tc\\rd"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("\x7f\x00\x07", "\\x7f\\x00\\x07"),
        ("[red]<script>", "[red]<script>"),
        ("größe 中文", "größe 中文"),
    ],
)
def test_nothing_that_a_terminal_obeys_gets_through(hostile: str, shown: str) -> None:
    assert plain(hostile) == shown


@given(st.text())
def test_plain_text_is_printable_and_stays_so(text: str) -> None:
    assert plain(text).isprintable()
    assert plain(plain(text)) == plain(text)
