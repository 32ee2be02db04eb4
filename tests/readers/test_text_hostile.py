"""Text from broken machines and from strangers: whatever it holds, it is read, read in part, or refused in words."""

from __future__ import annotations

import contextlib
import tracemalloc
from functools import cache
from pathlib import Path

import polars as pl
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import itstrace
from itstrace.errors import CaptureError, ItsTraceError, UnknownFormatError
from itstrace.readers import open_capture
from itstrace.readers.text.chunks import chunks
from itstrace.readers.text.heads import Stamp, find_heads
from itstrace.readers.text.reader import find_stamp

_SAMPLE = Path(__file__).parents[2] / "sample-traces" / "6.12-tracefs-trace.txt.zst"
_FEW = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@cache
def _whole() -> bytes:
    with _SAMPLE.open("rb") as packed:
        return zstandard.ZstdDecompressor().stream_reader(packed).read()


@cache
def _bytes() -> bytes:
    # Commands, moves and a few MSIs: enough that every observation has rows.
    return b"".join(_whole().splitlines(keepends=True)[:700])


def _read(path: Path) -> None:
    """Analyze a file, and read every field of every event; only errors of our own making may come."""
    with contextlib.suppress(ItsTraceError):
        itstrace.analyze(path)
    try:
        with open_capture(path) as capture:
            frames = [
                frame for block in capture.blocks(lambda event: event.fields) for frame in block.values()
            ]
            assert sum(frame.height for frame in frames) == int(capture.counts()["records"].sum())
            assert all(frame["time_ns"].is_sorted() for frame in frames)
    except ItsTraceError:
        pass


@_FEW
@given(
    places=st.lists(
        st.tuples(st.integers(0, 10**6), st.binary(max_size=12), st.integers(0, 40)), max_size=30
    ),
)
def test_bytes_replaced_inserted_and_removed(places: list[tuple[int, bytes, int]], tmp_path: Path) -> None:
    data = bytearray(_bytes())
    for place, fresh, removed in places:
        at = place % len(data)
        data[at : at + removed] = fresh
    (tmp_path / "t.txt").write_bytes(data)
    _read(tmp_path / "t.txt")


_WORDS = st.sampled_from(
    [
        b" ", b"\n", b": ", b":\n", b"[000]", b"]", b"[", b"(", b")", b"-", b"-1 [000] d.... 1.000000: ",
        b"1.000000: ", b"kvm_entry: ",
        b"queue_irq: ", b"irq=0x1", b" intid=8192", b"=", b"{0x1,0x2}", b"\r\n", b"CPU:0 [LOST 99999999999999999 EVENTS]\n",
        b"\xff\xfe", b"12us+: ", b"99999999999999999999", b"0x", b"PERF_RECORD_LOST lost 3", b"\0", b"print: ip=x buf=",
        b" sh-1   [001] .....  9223372036.854775: its_cmd: len=32 dw0=0xffffffffffffffff dw1=-9223372036854775808\n",
    ]
)  # fmt: skip


@_FEW
@given(parts=st.lists(_WORDS, max_size=60))
def test_pieces_of_lines_in_any_order(parts: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"".join(parts) or b"x")
    _read(tmp_path / "t.txt")


@_FEW
@given(data=st.binary(max_size=400))
def test_heads_are_found_in_no_text_at_all(data: bytes) -> None:
    for chunk in chunks(data):
        for stamp in Stamp:
            heads = find_heads(chunk, stamp)
            assert (heads.name_end <= chunk.ends[heads.line]).all()


@given(chunk_bytes=st.integers(400, 5000))
@settings(max_examples=20, deadline=None)
def test_lines_do_not_depend_on_where_chunks_end(chunk_bytes: int) -> None:
    data = _bytes()
    lines = [chunk.line(i) for chunk in chunks(data, chunk_bytes) for i in range(len(chunk))]
    assert lines == data.splitlines()


def test_a_line_longer_than_a_chunk_is_passed_over() -> None:
    data = b"first\n" + b"x" * 1000 + b"\nlast\n"
    lines = [(chunk.first_line + i, chunk.line(i)) for chunk in chunks(data, 100) for i in range(len(chunk))]
    assert lines == [(0, b"first"), (2, b"last")]


@pytest.mark.parametrize(
    "content",
    [
        b"hello world: 1.000000: what\n",
        b"# tracer: nop\n#\n# entries-in-buffer/entries-written: 0/0   #P:2\n",
        b"12:34:56: error: no such thing\n" * 50,
        b"\0" * 5000 + b" sh-1   [001] .....  1.000000: kvm_entry: x\n",
        b"zeit-1 [000] 1,000000: kvm_entry: x\n",
    ],
)
def test_other_text_is_no_capture(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(UnknownFormatError) as caught:
        open_capture(tmp_path / "t.txt")
    assert caught.value.advice


def test_more_names_than_any_kernel_has_are_counted(tmp_path: Path) -> None:
    lines = [f" sh-1   [001] .....  1.{i:06d}: event_{i}: a=1\n" for i in range(6000)]
    (tmp_path / "t.txt").write_text("".join(lines))
    with open_capture(tmp_path / "t.txt") as capture:
        assert capture.counts().height == 4096
        assert any("4,096" in each.problem for each in capture.damage())


def test_names_that_share_their_ends_are_kept_apart(tmp_path: Path) -> None:
    names = [f"{'a' * i}_shared_long_ending_of_a_name" for i in range(60)] + [f"n{i}" for i in range(900)]
    lines = [f" sh-1   [001] .....  1.{i:06d}: {name}: a={i}\n" for i, name in enumerate(names * 3)]
    (tmp_path / "t.txt").write_text("".join(lines))
    with open_capture(tmp_path / "t.txt") as capture:
        counts = dict(capture.counts().select("event", "records").iter_rows())

    assert counts == dict.fromkeys(names, 3)


def test_a_field_of_thousands_of_digits_is_null(tmp_path: Path) -> None:
    line = " sh-1   [001] .....  1.000000: queue_irq: irq=0x1 intid=8192\n"
    wide = line.replace("8192", "8" * 5000)
    (tmp_path / "t.txt").write_text(line + wide + line)
    with open_capture(tmp_path / "t.txt") as capture:
        assert capture.read("queue_irq")["intid"].to_list() == [8192, None, 8192]


def test_times_that_no_clock_has_are_none(tmp_path: Path) -> None:
    line = " sh-1   [001] .....  {}: queue_irq: irq=0x1 intid=8192\n"
    (tmp_path / "t.txt").write_text(
        "".join(map(line.format, ["9999999999.000000", "9223372035.000000", "1.000000"]))
    )
    with open_capture(tmp_path / "t.txt") as capture:
        assert capture.read("queue_irq")["time_ns"].to_list() == [1_000_000_000, 9_223_372_035_000_000_000]


@pytest.mark.parametrize("between", [0, 2, 3, 200_000])
def test_a_file_of_two_recordings_says_where_to_cut_it(between: int, tmp_path: Path) -> None:
    """Sorted together, the second would double or invent what happened in the first."""
    whole = _whole()
    filler = b" sh-1   [001] .....  2480.000000: kvm_entry: PC: 0x1\n" * between
    first = whole + filler
    (tmp_path / "t.txt").write_bytes(first + whole)
    with pytest.raises(CaptureError, match="several recordings") as caught:
        itstrace.analyze(tmp_path / "t.txt")

    # The header of the second is no event: the cut is behind it.
    at = first.count(b"\n") + sum(line.startswith(b"#") for line in whole.splitlines())
    assert f"head -n {at} FILE > 1.txt; tail -n +{at + 1} FILE > 2.txt" in str(caught.value.advice)


def test_the_parts_of_such_a_file_are_one_capture(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_bytes(_whole())
    (tmp_path / "2.txt").write_bytes(_whole())
    both = itstrace.analyze([tmp_path / "1.txt", tmp_path / "2.txt"])

    assert int(both.counts["records"].sum()) == 3962


def test_a_line_of_another_time_is_no_recording(tmp_path: Path) -> None:
    lines = _bytes().splitlines(keepends=True)
    stray = b" sh-1   [001] .....  9999.000000: kvm_entry: PC: 0x1\n"
    (tmp_path / "t.txt").write_bytes(
        b"".join([*lines[:300], stray, *lines[300:500], stray, stray, *lines[500:]])
    )
    with open_capture(tmp_path / "t.txt") as capture:
        assert int(capture.counts()["records"].sum()) == 3 + sum(not line.startswith(b"#") for line in lines)


def test_memory_does_not_grow_with_lines_that_nobody_asked_for(tmp_path: Path) -> None:
    line = (
        b" sh-1   [001] .....  %d.000000: sched_switch: prev_comm=a prev_pid=1 ==> next_comm=b next_pid=2\n"
    )
    with (tmp_path / "t.txt").open("wb") as out:
        for second in range(300):
            out.write(line % second * 1000)
    with open_capture(tmp_path / "t.txt") as capture:
        capture.counts()
        tracemalloc.start()
        for _ in capture.blocks(lambda _: None):
            pass
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert (tmp_path / "t.txt").stat().st_size > 25_000_000
    # numpy tells tracemalloc of its arrays: chunks of 4 MiB and what is found in them, two of them at a time.
    assert peak < 64 << 20


def test_counts_equal_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(_bytes())
    with open_capture(tmp_path / "t.txt") as capture:
        by_event = capture.counts().group_by("event").agg(pl.col("records").sum())
        assert all(capture.read(name).height == count for name, count in by_event.iter_rows())


def test_stamps_are_told_apart() -> None:
    assert find_stamp(_bytes()) is Stamp.SECONDS
    assert find_stamp(b"nothing\n") is None


def test_an_empty_text_has_a_clear_word(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(b"")
    with pytest.raises(CaptureError, match="empty"):
        open_capture(tmp_path / "t.txt")
