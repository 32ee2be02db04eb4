"""Instants, as a person names them."""

from __future__ import annotations

import polars as pl
import pytest

from itstrace.errors import UsageError
from itstrace.instants import parse_instant
from itstrace.schemas import MARKERS
from itstrace.units import seconds

_START, _END = 572_870_490_123, 600_000_000_000
_MARKERS = (
    pl.DataFrame(
        {
            "time_ns": [573_000_000_000, 574_000_000_000, 575_000_000_000],
            "text": ["HMARK SNAP churn begin", "HMARK SNAP churn stopped", "HMARK SNAP churn end"],
        }
    )
    .with_columns(seq=0, cpu=0, pid=0)
    .select(MARKERS.names())
    .cast(MARKERS)
)


def instant(text: str) -> int:
    return parse_instant(text, _START, _END, _MARKERS)


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        ("573", 573_000_000_000),
        ("573.5", 573_500_000_000),
        ("572.870490123", _START),
        ("+3.2", _START + 3_200_000_000),
        ("+0", _START),
        ("-1", _END - 1_000_000_000),
        ("-0.000000001", _END - 1),
        ("churn stopped", 574_000_000_000),
        ("HMARK SNAP churn end", 575_000_000_000),
    ],
)
def test_an_instant_is_a_time_an_offset_or_a_marker(text: str, time_ns: int) -> None:
    assert instant(text) == time_ns


def test_a_time_as_a_trace_prints_it_takes_in_what_is_printed_with_it() -> None:
    """The record at …490123 ns is printed as 572.870490: as of that time it has happened."""
    assert instant("572.870490") == 572_870_490_499
    assert instant("600.000000") == _END


@pytest.mark.parametrize("text", ["571", "600.5", "+30", "-28"])
def test_a_time_outside_the_capture_is_wrong_usage(text: str) -> None:
    with pytest.raises(
        UsageError, match=r"outside the capture, which goes from 572\.870490123 to 600\.000000000"
    ):
        instant(text)


def test_an_ambiguous_marker_is_wrong_usage_and_lists_the_candidates() -> None:
    with pytest.raises(UsageError, match="3 markers hold 'SNAP churn'") as caught:
        instant("SNAP churn")
    assert "574.000000000 HMARK SNAP churn stopped" in str(caught.value)


@pytest.mark.parametrize("text", ["SNAP boot", "", "  ", "1e3", "5,5", "--1", "+", "\u0663"])
def test_what_is_neither_time_nor_marker_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="is no time, and no marker"):
        instant(text)


def test_without_records_there_is_no_time() -> None:
    with pytest.raises(UsageError, match="holds no record"):
        parse_instant("5", None, None, _MARKERS.clear())
    with pytest.raises(UsageError, match="no marker"):
        parse_instant("x", None, None, _MARKERS.clear())


def test_printed_seconds_are_read_back() -> None:
    assert instant(seconds(_START, 9)) == _START
