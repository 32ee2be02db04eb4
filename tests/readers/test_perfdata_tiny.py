"""The order of time, losses, damage and both byte orders, on files whose every value is known."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from helpers.tiny_perfdata import LOST, LOST_SAMPLES, SAMPLE, Tiny, tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itstrace.errors import CaptureError, ItsTraceError
from itstrace.readers import open_capture
from itstrace.readers.perfdata import PerfData
from itstrace.readers.perfdata import reader as reader_module
from itstrace.readers.perfdata.queue import RoundQueue
from itstrace.readers.perfdata.walk import find_chain

if TYPE_CHECKING:
    from pathlib import Path

    from itstrace.readers.payloads import Bytes


def _open(folder: Path, raw: bytes) -> PerfData:
    path = folder / "tiny.data"
    path.write_bytes(raw)
    capture = open_capture(path)
    assert isinstance(capture, PerfData)
    return capture


@pytest.mark.parametrize("big_endian", [False, True])
def test_both_byte_orders(tmp_path: Path, big_endian: bool) -> None:
    with _open(tmp_path, tiny(big_endian=big_endian).file()) as capture:
        wide, text = capture.read("tiny:wide"), capture.read("text")
        both = pl.concat([wide.select("seq", "time_ns", "cpu", "pid", pl.col("value").cast(pl.Int64)),
                          text.select("seq", "time_ns", "cpu", "pid", pl.col("value").cast(pl.Int64))]).sort("seq")  # fmt: skip

        assert both.rows() == [(i, 1000 + 10 * i, i % 2, 7 + i % 2, i) for i in range(120)]
        assert text["text"].to_list() == [f"n{i}" for i in range(0, 120, 3)]
        assert text["comm"].to_list() == ["eight" if i % 2 else "seven" for i in range(0, 120, 3)]
        assert capture.comms == {0: "swapper", 7: "seven", 8: "eight", 9: "eight"}
        assert capture.info.little_endian is not big_endian
        assert capture.span() == (1000, 2190)
        assert capture.damage() == []
        assert capture.gaps().is_empty()


def test_ties_are_broken_by_cpu_and_then_by_place(tmp_path: Path) -> None:
    out = Tiny()
    for cpu, value in ((1, 10), (1, 11), (0, 0), (0, 1)):
        out.sample(5000, cpu, value)
    with _open(tmp_path, out.file()) as capture:
        assert capture.read("wide")["value"].to_list() == [0, 1, 10, 11]


class _SmallQueue(RoundQueue):
    """Hands on a few samples at a time."""

    def __init__(self, file: Bytes) -> None:
        super().__init__(file, block_samples=8, max_waiting=40)


def test_blocks_go_on_at_rounds_and_are_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "RoundQueue", _SmallQueue)
    monkeypatch.setattr("itstrace.readers.perfdata.stream._MIN_WINDOW_BYTES", 512)
    monkeypatch.setattr("itstrace.readers.perfdata.stream._MAX_WINDOW_BYTES", 512)
    with _open(tmp_path, tiny(600).file()) as capture:
        blocks = [frames["tiny:wide"].height + frames["tiny:text"].height for frames in capture.blocks(
            {"tiny:wide": None, "tiny:text": None})]  # fmt: skip

        assert len(blocks) > 10
        assert sum(blocks) == 600
        assert max(blocks) <= 60
        assert capture.read("wide")["value"].to_list() == [i for i in range(600) if i % 3]
        assert capture.disorder() == 0


def test_without_rounds_what_comes_too_late_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of CPU 0, then all of CPU 1, and no room to wait for it."""
    monkeypatch.setattr(reader_module, "RoundQueue", _SmallQueue)
    monkeypatch.setattr("itstrace.readers.perfdata.stream._MIN_WINDOW_BYTES", 512)
    monkeypatch.setattr("itstrace.readers.perfdata.stream._MAX_WINDOW_BYTES", 512)
    out = Tiny()
    for cpu in (0, 1):
        for i in range(200):
            out.sample(1000 + i, cpu, i)
    with _open(tmp_path, out.file()) as capture:
        times = capture.read("wide")["time_ns"]

        assert times.is_sorted()
        assert times.len() == 400
        assert 0 < capture.disorder() < 200
        assert f"{capture.disorder()} samples came too late" in capture.damage()[-1].problem


def test_a_loss_lies_between_two_samples_of_its_cpu(tmp_path: Path) -> None:
    out = Tiny()
    out.sample(1000, 0)
    out.sample(1010, 1)
    out.sample(1020, 0)
    # Its own time is taken after that of the sample which then follows it.
    out.record(LOST, out.pack("QQ", 50, 5) + out.trailer(1055, 0))
    out.sample(1050, 0)
    out.record(LOST, out.pack("QQ", 50, 2) + out.trailer(1065, 1))
    out.round()
    out.sample(1060, 1)
    out.record(LOST, out.pack("QQ", 50, 1) + out.trailer(1090, 0))
    out.sample(1100, 1)
    with _open(tmp_path, out.file()) as capture:
        assert capture.gaps().rows() == [(0, 1020, 1050, 5), (1, 1010, 1060, 2), (0, 1050, 1090, 1)]


@pytest.mark.parametrize("chunked", [False, True])
def test_perfs_own_sums_of_losses_are_not_counted_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunked: bool
) -> None:
    if chunked:
        monkeypatch.setattr("itstrace.readers.perfdata.stream._MIN_WINDOW_BYTES", 8)
        monkeypatch.setattr("itstrace.readers.perfdata.stream._MAX_WINDOW_BYTES", 8)
    out = Tiny()
    out.record(69, out.pack("Q4Q4Q", 2, 50, 0, 0, 2**64 - 1, 51, 0, 1, 2**64 - 1))
    out.sample(1000, 0)
    out.sample(1005, 1)
    out.record(LOST, out.pack("QQ", 50, 5) + out.trailer(1018, 0))
    out.sample(1017, 0)
    out.record(LOST_SAMPLES, out.pack("Q", 5) + out.trailer(id_=50))
    out.record(LOST_SAMPLES, out.pack("Q", 3) + out.trailer(id_=51))
    with _open(tmp_path, out.file()) as capture:
        assert capture.gaps().rows() == [(0, 1000, 1017, 5), (1, 1005, 1017, 3)]
        assert capture.damage() == []


def test_sums_of_losses_without_a_cpu_are_told(tmp_path: Path) -> None:
    out = tiny(10)
    out.record(LOST_SAMPLES, out.pack("Q", 3) + out.trailer(id_=50))
    with _open(tmp_path, out.file()) as capture:
        assert capture.gaps().is_empty()
        assert "3 samples were lost" in capture.damage()[0].problem


def test_broken_samples_are_left_out_and_counted(tmp_path: Path) -> None:
    out = tiny(20)
    out.sample(1 << 63, 0)  # a time that no clock shows
    out.sample(3000, 1 << 16)
    out.record(SAMPLE, b"\0" * 16)
    whole = out.records[-2]
    out.records.append(whole[:48] + out.pack("I", 1 << 31) + whole[52:])
    with _open(tmp_path, out.file()) as capture:
        assert capture.counts()["records"].sum() == 20
        assert "4 samples are shorter" in capture.damage()[0].problem


def test_ids_of_no_event_and_events_of_no_description(tmp_path: Path) -> None:
    """Of trace records the id does not matter; one whose event has no description is counted by its number."""
    out = tiny(4)
    out.sample(2000)
    record = bytearray(out.records[-1])
    record[8:16] = out.pack("Q", 999)
    record[52:54] = out.pack("H", 444)
    out.records[-1] = bytes(record)
    with _open(tmp_path, out.file()) as capture:
        assert ("unknown:444", 0, 1) in capture.counts().rows()


def test_headers_of_absurd_sizes(tmp_path: Path) -> None:
    whole = bytearray(tiny().file())
    for at in (8, 16, 24, 32, 40):
        broken = bytearray(whole)
        broken[at : at + 8] = b"\xff" * 8
        path = tmp_path / f"{at}.data"
        path.write_bytes(broken)
        with pytest.raises(CaptureError) as raised:
            open_capture(path).counts()
        assert str(path) in raised.value.message


def test_a_data_size_beyond_the_file_is_damage(tmp_path: Path) -> None:
    whole = bytearray(tiny().file())
    whole[48:56] = b"\xff" * 7 + b"\x0f"
    with _open(tmp_path, bytes(whole)) as capture:
        assert capture.counts()["records"].sum() >= 120
        assert "before its records do" in capture.damage()[0].problem


def test_packed_records_that_unpack_beyond_measure(tmp_path: Path) -> None:
    """A zstd frame of one repeated byte: 131,072 of them for four bytes."""
    block = struct.pack("<I", (131072 << 3) | (1 << 1))[:3] + b"\0"
    bomb = b"\x28\xb5\x2f\xfd\x00\x58" + block * 16000
    out = tiny(4)
    out.record(81, bomb[: (1 << 16) - 16])
    with _open(tmp_path, out.file()) as capture:
        assert capture.counts()["records"].sum() == 4
        assert "unpack to more than" in capture.damage()[0].problem


def test_records_that_are_no_whole_words(tmp_path: Path) -> None:
    """Perf packs into records of any size; the chain goes on behind them, wherever that is."""
    out = tiny(48)
    out.records = [part for each in out.records for part in (each, out.pack("IHH", 99, 0, 13) + b"\1" * 5)]
    with _open(tmp_path, out.file()) as capture:
        assert capture.counts()["records"].sum() == 48
        assert capture.read("wide")["value"].to_list() == [i for i in range(48) if i % 3]
        assert capture.damage() == []


def test_after_too_many_broken_records_the_rest_is_left_out(tmp_path: Path) -> None:
    out = tiny(24)
    whole = list(out.records)
    for _ in range(600):
        out.records += [b"\0" * 8, *whole[-8:]]
    with _open(tmp_path, out.file()) as capture:
        assert any("the rest is left out" in each.problem for each in capture.damage())
        assert capture.counts()["records"].sum() > 3000


def test_a_chain_is_found_again() -> None:
    records = b"".join(tiny(30).records)
    noise = np.random.default_rng(1).integers(0, 256, 4096, np.uint8).tobytes()
    raw = np.frombuffer(b"\0" * 8 + noise + records, np.uint8)

    assert find_chain(raw, 8, len(raw), big_endian=False) == 8 + len(noise)
    assert find_chain(raw[:4096], 8, 4096, big_endian=False) is None


_WHOLE = tiny(60).file()
_SETTINGS = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _survives(path: Path) -> None:
    """Nothing but an error of ours, or a result in order."""
    try:
        with open_capture(path) as capture:
            assert capture.counts()["records"].sum() < 1000
            last = -1
            for block in capture.blocks(dict.fromkeys(capture.formats)):
                times = [frame["time_ns"] for frame in block.values() if frame.height]
                assert all(each.is_sorted() for each in times)
                assert all(int(each[0]) >= last for each in times)
                last = max([last, *(int(each[-1]) for each in times)])
            capture.gaps()
            capture.damage()
    except ItsTraceError:
        pass


@_SETTINGS
@given(st.lists(st.tuples(st.integers(0, len(_WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=12))
def test_any_bytes_changed(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    raw = bytearray(_WHOLE)
    for at, value in changes:
        raw[at] = value
    path = tmp_path / "changed.data"
    path.write_bytes(raw)
    _survives(path)


@_SETTINGS
@given(
    st.integers(0, 520 // 8),
    st.sampled_from([0, 1, 7, 1 << 16, 1 << 31, (1 << 63) - 1, (1 << 64) - 1]),
    st.booleans(),
)
def test_any_word_of_the_header_changed(tmp_path: Path, word: int, value: int, big_endian: bool) -> None:
    raw = bytearray(tiny(60, big_endian=big_endian).file())
    raw[8 * word : 8 * word + 8] = value.to_bytes(8, "big" if big_endian else "little")
    path = tmp_path / "changed.data"
    path.write_bytes(raw)
    _survives(path)


@_SETTINGS
@given(st.integers(1, len(_WHOLE)), st.integers(0, 600), st.integers(0, len(_WHOLE)))
def test_any_part_cut_out(tmp_path: Path, end: int, size: int, at: int) -> None:
    raw = _WHOLE[:end]
    path = tmp_path / "cut.data"
    path.write_bytes(raw[:at] + raw[at + size :] or b"P")
    _survives(path)


def test_a_loss_at_an_impossible_time_is_bounded_by_samples_alone(tmp_path: Path) -> None:
    """Found by a fuzzer: a LOST record of which the trailer claims a time that no clock has."""
    recording = tiny(6)
    recording.record(LOST, recording.pack("QQ", 50, 2**64 - 1) + recording.trailer(2**64 - 5))
    with _open(tmp_path, recording.file()) as capture:
        gaps = capture.gaps()
        _, last = capture.span()

    assert gaps["to_ns"].to_list() == [last]
    assert gaps["lost"].to_list() == [2**64 - 1]
