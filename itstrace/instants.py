"""Instants of a capture, as a person names them: `572.870490`, `+3.2`, `-1`, or a marker's text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from itstrace.errors import UsageError
from itstrace.units import seconds

if TYPE_CHECKING:
    import polars as pl

_SECONDS = re.compile(r"([+-]?)([0-9]{1,10})(?:\.([0-9]{0,9}))?")
#: Digits of a time stamp's fraction in a trace's text.
_PRINTED_DIGITS = 6
_SHOWN = 8


def parse_instant(text: str, start_ns: int | None, end_ns: int | None, markers: pl.DataFrame) -> int:
    """The time that `text` names, in ns of the capture's clock.

    Seconds as the trace prints them (`572.870490`), from the start (`+3.2`), before the end (`-1`), or a
    piece of text that occurs in exactly one of `markers` (rows of MARKERS).
    A time to the microsecond, as traces print it (rounded), takes in every record that is printed with it.
    Raises: UsageError where it names no time within the capture, no marker, or more than one.
    """
    told = _SECONDS.fullmatch(text.strip())
    if told is None:
        return _marker(text, markers)
    sign, whole, fraction = told[1], told[2], told[3] or ""
    offset_ns = int(whole) * 1_000_000_000 + int(fraction.ljust(9, "0"))
    if start_ns is None or end_ns is None:
        raise UsageError(f"{text!r} names no time: the capture holds no record")
    time_ns = {"+": start_ns + offset_ns, "-": end_ns - offset_ns, "": offset_ns}[sign]
    if not sign and len(fraction) == _PRINTED_DIGITS:
        time_ns = max(time_ns, min(time_ns + 499, end_ns))
    if not start_ns <= time_ns <= end_ns:
        span = f"{seconds(start_ns, 9)} to {seconds(end_ns, 9)}"
        raise UsageError(
            f"{text!r} lies outside the capture, which goes from {span}",
            advice="+S counts from the start, -S back from the end",
        )
    return time_ns


def _marker(text: str, markers: pl.DataFrame) -> int:
    notes = [
        (time_ns, note) for time_ns, note in markers.select("time_ns", "text").iter_rows() if note is not None
    ]
    found = [(time_ns, note) for time_ns, note in notes if text.strip() and text in note]
    if len(found) == 1:
        return int(found[0][0])
    if found:
        problem, listed = f"{len(found)} markers hold {text!r}", found
    else:
        problem, listed = f"{text!r} is no time, and no marker of the capture holds it", notes
    rows = [f"{seconds(time_ns, 9)} {note.strip()}" for time_ns, note in listed[:_SHOWN]]
    more = [] if len(listed) <= _SHOWN else [f"… and {len(listed) - _SHOWN} more"]
    if rows:
        raise UsageError(
            problem, advice="more of one marker's text, or its time:\n    " + "\n    ".join(rows + more)
        )
    raise UsageError(problem, advice="seconds (572.870490), +S from the start, or -S before the end")
