"""Text against the capture that it was printed from: the same records, times and fields, and the same analysis.

What prints is trace-cmd; what it prints is compared with what our own reader finds in the trace.dat itself.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from conftest import CORPUS, analysis_of
from helpers.same import differences
from helpers.trace_cmd import needs_trace_cmd

import itstrace
from itstrace.readers.text import TextCapture
from itstrace.readers.tracedat import TraceDat

if TYPE_CHECKING:
    from itstrace.readers.base import Capture

_SAMPLES = sorted((Path(__file__).parents[2] / "sample-traces").glob("*.dat"))
_OTHERS = sorted((*CORPUS.glob("*/trace.dat"), *CORPUS.glob("faults/*/trace.dat"))) if CORPUS else []
_FORMS = {
    "default": (),
    "raw": ("-R",),
    "no plugins": ("-N",),
    "nanoseconds": ("-t",),
    "latency": ("-l",),
    "latency, raw, nanoseconds": ("-l", "-R", "-t"),
}
#: Fields that no form prints as they stand in the record: a function's name instead of its address, or a pointer to
#: a string that is printed as that string.
_OTHERWISE = {"ip", "name", "__probe_ip", "__probe_func", "__probe_ret_ip", "op"}
#: Microseconds are printed rounded.
_HALF_MICRO_NS = 500


def printed(path: Path, options: tuple[str, ...], folder: Path) -> Path:
    """What `trace-cmd report` prints of a trace.dat, in a file."""
    text = folder / "report.txt"
    with text.open("wb") as out:
        command = ["trace-cmd", "report", *options, "-i", str(path)]
        subprocess.run(command, stdout=out, stderr=subprocess.DEVNULL, check=True)
    return text


def profile_of(analysis: itstrace.Analysis) -> str | None:
    """The model that a capture was replayed as: a text does not tell its kernel."""
    return next(iter(analysis.history.profiles.values()), None) if analysis.history.profiles else None


def _records(capture: Capture) -> dict[str, pl.DataFrame]:
    """Every record of a capture, by the event's bare name."""
    parts: dict[str, list[pl.DataFrame]] = {}
    for block in capture.blocks(lambda event: event.fields):
        for name, frame in block.items():
            if frame.height:
                parts.setdefault(name.rpartition(":")[2], []).append(frame)
    return {name: pl.concat(frames) for name, frames in parts.items()}


def _bits(column: pl.Series) -> Any:
    if column.dtype == pl.Boolean:
        column = column.cast(pl.UInt8)
    return (
        column.to_numpy().astype(np.int64 if column.dtype.is_signed_integer() else np.uint64).view(np.uint64)
    )


def _field_differs(theirs: pl.Series, ours: pl.Series) -> bool:
    """Whether a field's values differ; what is printed without a sign counts as its own width."""
    if ours.null_count():
        return True
    if theirs.dtype == pl.String:
        return bool((theirs.str.strip_chars() != ours).any())
    if not (theirs.dtype.is_integer() or theirs.dtype == pl.Boolean) or ours.dtype == pl.String:
        return theirs.dtype.is_integer()
    a, b = _bits(theirs), _bits(ours)
    widths = {8 * int(theirs.to_physical().head(1).estimated_size()), 32, 64}
    return not any(np.array_equal(a & np.uint64((1 << w) - 1), b & np.uint64((1 << w) - 1)) for w in widths)


@needs_trace_cmd
@pytest.mark.parametrize("form", _FORMS)
@pytest.mark.parametrize("path", _SAMPLES, ids=lambda path: path.stem)
def test_text_has_the_records_of_the_capture_it_was_printed_from(
    path: Path, form: str, tmp_path: Path
) -> None:
    options = _FORMS[form]
    with TraceDat.open(path) as capture:
        theirs = _records(capture)
        gaps = capture.gaps()
    text = TextCapture.open(printed(path, options, tmp_path))
    assert text is not None
    with text:
        ours = _records(text)
        counted = dict(text.counts().group_by("event").agg(pl.col("records").sum()).iter_rows())

        assert {name: frame.height for name, frame in ours.items()} == {
            name: frame.height for name, frame in theirs.items()
        }
        assert {name.rpartition(":")[2]: count for name, count in counted.items()} == {
            name: frame.height for name, frame in theirs.items()
        }
        assert text.damage() == []
        assert text.gaps().select("cpu", "lost").rows() == gaps.select("cpu", "lost").rows()
        wrong: list[str] = []
        for name, frame in theirs.items():
            mine = ours[name]
            # Within a CPU the order is the same in both; between CPUs it is that of the nanoseconds, as printed.
            assert mine["seq"].to_list() == frame["seq"].to_list(), name
            assert mine["cpu"].to_list() == frame["cpu"].to_list(), name
            assert mine["pid"].to_list() == frame["pid"].to_list(), name
            apart = (mine["time_ns"] - frame["time_ns"]).abs().max()
            assert isinstance(apart, int)
            assert apart <= (0 if "-t" in options else _HALF_MICRO_NS), name
            shared = (set(mine.columns) & set(frame.columns)) - _OTHERWISE - {"seq", "time_ns", "cpu", "pid"}
            wrong += [f"{name}.{column}" for column in shared if _field_differs(frame[column], mine[column])]
            dynamic = any(column.startswith("__probe") for column in frame.columns)
            if dynamic or "-R" in options:
                lacking = set(frame.columns) - set(mine.columns) - _OTHERWISE
                wrong += [f"{name}.{column} is not there" for column in lacking]
        assert wrong == []


#: Every sample in three forms; of the corpus, which has the same kinds of captures, every one in the usual form.
_STORIES = [
    (path, form) for path in _SAMPLES for form in ("default", "nanoseconds", "latency, raw, nanoseconds")
]
_MORE_STORIES = [pytest.param(path, "default", marks=pytest.mark.corpus) for path in _OTHERS]


@needs_trace_cmd
@pytest.mark.parametrize(("path", "form"), [*_STORIES, *_MORE_STORIES])
def test_text_tells_the_same_story(path: Path, form: str, tmp_path: Path) -> None:
    reference = analysis_of(path)
    options = _FORMS[form]
    told = itstrace.analyze(printed(path, options, tmp_path), profile=profile_of(reference))

    assert differences(reference, told, tolerance_ns=0 if "-t" in options else 2 * _HALF_MICRO_NS) == []
