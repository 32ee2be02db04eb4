"""Files that are cut, damaged or lie: a clear error or a partial result, no traceback, hang or flood."""

from __future__ import annotations

import mmap
import os
import random
import struct
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import zstandard
from conftest import SAMPLES
from helpers.tracedat_writer import Buffer, Event, Field, Machine, Page, TraceFile, pages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itstrace.errors import CaptureError, ItsTraceError, UnknownFormatError, UsageError
from itstrace.readers import open_capture
from itstrace.readers.tracedat import TraceDat

if TYPE_CHECKING:
    from collections.abc import Iterator

MACHINE = Machine()
EVENT = Event(
    300,
    "demo",
    "mixed",
    [Field("u64", "value", "Q"), Field("__data_loc char[]", "text", "str"), Field("u32[3]", "list", "3I")],
)
FORMS: list[tuple[Literal[6, 7], Literal["none", "zlib", "zstd"]]] = [
    (6, "none"), (7, "none"), (7, "zlib"), (7, "zstd"),
]  # fmt: skip


def _pages(seed: int, count: int, start: int = 10**9) -> list[Page]:
    chance = random.Random(seed)  # noqa: S311
    time, records = start, []
    for i in range(count):
        time += chance.randrange(1000, 10_000_000)
        payload = EVENT.payload(MACHINE, seed, [i, "x" * chance.randrange(60), [1, 2, 3]])
        records.append((time, payload))
    return pages(MACHINE, 4096, records)


def _file(version: Literal[6, 7] = 7, compression: Literal["none", "zlib", "zstd"] = "none") -> TraceFile:
    buffers = [Buffer({cpu: _pages(cpu, 400) for cpu in range(3)}), Buffer({0: _pages(9, 50)}, "second")]
    return TraceFile([EVENT], buffers, MACHINE, version, compression, comms={1: "one"})


@pytest.fixture(scope="module", params=FORMS, ids=lambda form: f"v{form[0]}-{form[1]}")
def whole(request: pytest.FixtureRequest) -> bytes:
    return _file(*request.param).to_bytes()


def _read(path: Path) -> tuple[int, int]:
    """Read all of a file; give how many rows and how many damaged places."""
    with TraceDat.open(path) as capture:
        rows, last_ns, last_seq = 0, -(1 << 63), -1
        for block in capture.blocks(dict.fromkeys(capture.formats)):
            for frame in block.values():
                if len(frame):
                    assert frame["time_ns"].is_sorted()
                    assert frame["seq"].is_sorted()
            frames = [frame for frame in block.values() if len(frame)]
            if frames:
                assert min(frame["time_ns"][0] for frame in frames) >= last_ns
                assert min(frame["seq"][0] for frame in frames) > last_seq
                last_ns = max(frame["time_ns"][-1] for frame in frames)
                last_seq = max(frame["seq"][-1] for frame in frames)
                rows += sum(len(frame) for frame in frames)
        assert int(capture.counts()["records"].sum()) >= rows
        gaps = capture.gaps()
        assert (gaps["from_ns"] <= gaps["to_ns"]).all()
        return rows, len(capture.damage())


def _read_or_refuse(path: Path) -> tuple[int, int] | None:
    try:
        return _read(path)
    except CaptureError:
        return None


def test_the_whole_file_is_sound(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.dat"
    path.write_bytes(whole)

    assert _read(path) == (1250, 0)


def test_cut_anywhere(whole: bytes, tmp_path: Path) -> None:
    """At every page, and at two hundred other places."""
    path = tmp_path / "x.dat"
    chance = random.Random(1)  # noqa: S311
    for size in [*range(0, len(whole), 4096), *(chance.randrange(len(whole)) for _ in range(200))]:
        path.write_bytes(whole[:size])
        result = _read_or_refuse(path)
        if result is not None:
            assert result[0] <= 1250
            assert result[1] > 0, size


def test_a_file_of_version_6_that_is_cut_gives_what_is_there(tmp_path: Path) -> None:
    """Its table of CPUs stands before the data; the loss is damage, and a gap to the capture's end."""
    data = _file(6).to_bytes()
    path = tmp_path / "x.dat"
    path.write_bytes(data[: len(data) * 3 // 4])

    with TraceDat.open(path) as capture:
        counts = dict(capture.counts().select("cpu", "records").rows())
        gaps = capture.gaps()
        problems = [damage.problem for damage in capture.damage()]

    assert counts[0] == 400
    assert 0 < sum(counts.values()) < 1250
    assert any("the file ends" in problem for problem in problems)
    assert gaps["lost"].null_count() == len(gaps) > 0


_DAMAGE = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)), min_size=1, max_size=12
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=_DAMAGE)
def test_any_bytes_may_be_others(whole: bytes, tmp_path: Path, places: list[tuple[float, bytes]]) -> None:
    data = bytearray(whole)
    for place, other in places:
        at = int(place * len(data))
        data[at : at + len(other)] = other
    path = tmp_path / "x.dat"
    path.write_bytes(data[: len(whole)])

    _read_or_refuse(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    places=st.lists(
        st.tuples(st.integers(0, 5000), st.binary(min_size=1, max_size=4)), min_size=1, max_size=3
    )
)
def test_the_description_of_the_file_may_be_others(
    whole: bytes, tmp_path: Path, places: list[tuple[int, bytes]]
) -> None:
    data = bytearray(whole)
    for at, other in places:
        data[at : at + len(other)] = other
    path = tmp_path / "x.dat"
    path.write_bytes(data[: len(whole)])

    _read_or_refuse(path)


def test_a_damaged_page_is_left_out_and_told(tmp_path: Path) -> None:
    """A page whose size, or whose stamp, cannot be: its records are lost, those around it are not."""
    cpus = {0: _pages(0, 800)}
    sound = len(cpus[0])
    cpus[0][3].stamp = 1 << 50
    cpus[0][5].stamp = 5
    raw = bytearray(TraceFile([EVENT], [Buffer(cpus)], MACHINE).to_bytes())
    at = raw.index(cpus[0][7].finish())
    raw[at + 8 : at + 12] = struct.pack("<I", 4090)
    path = tmp_path / "x.dat"
    path.write_bytes(raw)

    with TraceDat.open(path) as capture:
        rows = int(capture.counts()["records"].sum())
        damage = capture.damage()
        gaps = capture.gaps()

    assert sound > 8
    assert len(damage) == 3
    assert {each.offset_bytes for each in damage} >= {at}
    assert 800 * (sound - 4) / sound < rows < 800
    assert len(gaps) == 3
    assert capture.disorder() == 0


def test_stamps_that_run_backwards_keep_the_order_of_the_file(tmp_path: Path) -> None:
    """A clock set back by a little: the order in the buffer stands, times follow it, and it is counted."""
    page = Page(MACHINE, 4096, 1000)
    for time in (1000, 2000):
        page.record(time, EVENT.payload(MACHINE, 1, [time, "", [0, 0, 0]]))
    page.absolute(1500)
    page.record(1600, EVENT.payload(MACHINE, 1, [1600, "", [0, 0, 0]]))
    page.record(2600, EVENT.payload(MACHINE, 1, [2600, "", [0, 0, 0]]))
    path = TraceFile([EVENT], [Buffer({0: [page]})], MACHINE).write(tmp_path / "x.dat")

    with TraceDat.open(path) as capture:
        (block,) = capture.blocks({"demo:mixed": ("value",)})

    assert block["demo:mixed"].select("time_ns", "value").rows() == [
        (1000, 1000),
        (2000, 2000),
        (2000, 1600),
        (2600, 2600),
    ]
    assert capture.disorder() == 1


def test_a_great_many_records_of_one_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where time never moves no span ever ends; blocks stay small, and nothing is lost or doubled."""
    monkeypatch.setattr("itstrace.readers.tracedat.windows.BATCH_BYTES", 16384)
    monkeypatch.setattr("itstrace.readers.tracedat.windows.BATCH_PAGES", 1)
    monkeypatch.setattr("itstrace.readers.tracedat.reader.RUN_BYTES", 4096)
    cpus = {}
    for cpu in range(3):
        records = [
            (10**9 + max(0, i - 2000), EVENT.payload(MACHINE, cpu, [i, "y" * 9, [0, 0, 0]]))
            for i in range(2500)
        ]
        cpus[cpu] = pages(MACHINE, 4096, records)
    path = TraceFile([EVENT], [Buffer(cpus)], MACHINE).write(tmp_path / "x.dat")

    with TraceDat.open(path) as capture:
        blocks = [block["demo:mixed"] for block in capture.blocks({"demo:mixed": ("value",)})]

    rows = [
        row for block in blocks for row in block.select("time_ns", "cpu", "value", "seq").sort("seq").rows()
    ]
    assert [row[:3] for row in rows] == sorted(
        (10**9 + max(0, i - 2000), cpu, i) for cpu in range(3) for i in range(2500)
    )
    assert [row[3] for row in rows] == list(range(7500))
    assert max(len(block) for block in blocks) < 1000


def _memory(path: Path) -> int:
    tracemalloc.start()
    try:
        _read_or_refuse(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_chunk_that_lies_about_its_size(tmp_path: Path) -> None:
    """In the file's table, or in the compressed frame itself: told, left out, and no memory spent on it."""
    file = _file(7, "zstd")
    raw = file.to_bytes()
    page = b"".join(each.finish() for each in file.buffers[0].cpus[1][:10])
    frame = zstandard.compress(page)
    at = raw.index(frame)
    bomb = zstandard.compress(bytes(1 << 28))
    lies = {
        "table": raw[: at - 4] + struct.pack("<I", 0xFFFF0000) + raw[at:],
        "a little": raw[: at - 4] + struct.pack("<I", len(page) - 4096) + raw[at:],
        "length": raw[: at - 8] + struct.pack("<I", 0xFFFF0000) + raw[at - 4 :],
        "frame": raw[: at - 4]
        + struct.pack("<I", len(page))
        + bomb[: len(frame)]
        + raw[at + min(len(bomb), len(frame)) :],
    }
    for what, data in lies.items():
        path = tmp_path / "x.dat"
        path.write_bytes(data)

        assert _memory(path) < 64 << 20, what
        result = _read_or_refuse(path)
        assert result is not None, what
        assert 0 < result[0] < 1250, what
        assert result[1] > 0, what


def test_a_section_that_lies_about_its_size(tmp_path: Path) -> None:
    raw = _file(7, "zstd").to_bytes()
    formats = raw.index(zstandard.compress(_file(7, "zstd")._formats()))
    path = tmp_path / "x.dat"
    path.write_bytes(raw[: formats - 4] + struct.pack("<I", 0xFFFFFFFF) + raw[formats:])

    assert _memory(path) < 64 << 20
    with TraceDat.open(path) as capture:
        assert capture.formats == {}
        assert int(capture.counts()["records"].sum()) == 1250
        assert capture.counts()["event"].unique().to_list() == ["unknown:300"]
        assert any("EVENT_FORMATS" in damage.problem for damage in capture.damage())


def test_sections_that_run_in_a_circle(tmp_path: Path) -> None:
    """The last options lead back to the first."""
    raw = bytearray(_file(7).to_bytes())
    first = struct.unpack_from("<Q", raw, 10 + 2 + 2 + 4 + 6)[0]
    raw[-8:] = struct.pack("<Q", first)
    path = tmp_path / "x.dat"
    path.write_bytes(raw)

    rows, damaged = _read(path)

    assert (rows, damaged) == (1250, 1)


def test_cpus_that_claim_the_same_bytes(tmp_path: Path) -> None:
    """The same records twice would be invented records; and a thousand CPUs of one place a very long wait."""
    raw = _file(7).to_bytes()
    with TraceDat.open(_write(tmp_path, raw)) as capture:
        cpus = capture._container.buffers[0].cpus
    one, two = (struct.pack("<IQQ", cpu.cpu, cpu.offset_bytes, cpu.size_bytes) for cpu in cpus[:2])
    lie = struct.pack("<IQQ", 1, cpus[0].offset_bytes, cpus[0].size_bytes)

    rows, damaged = _read(_write(tmp_path, raw.replace(one + two, one + lie)))

    assert (rows, damaged) == (850, 1)


def _write(folder: Path, data: bytes) -> Path:
    path = folder / "x.dat"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("count", [0xFFFFFFFF, 1 << 31, 70_000])
def test_counts_that_are_absurd(tmp_path: Path, count: int) -> None:
    """Of event types, of systems and of CPUs, in a file with gigabytes of nothing behind them."""
    raw = _file(6).to_bytes()
    formats = raw.index(_file(6)._formats())
    lies = [
        raw[: formats - 4] + struct.pack("<I", count) + bytes(64),
        raw[:formats] + struct.pack("<I", count) + bytes(64),
        raw[: raw.index(b"options  \0") - 4] + struct.pack("<I", count) + b"flyrecord\0",
    ]
    for lie in lies:
        path = _write(tmp_path, lie)
        with path.open("r+b") as file:
            file.truncate(4 << 30)  # a hole

        with pytest.raises(CaptureError):
            TraceDat.open(path)


def test_latency_files_are_refused_with_a_word(tmp_path: Path) -> None:
    old = _file(6).to_bytes()
    text = struct.pack("<Q", 0) + b"\0mono\0"
    new = TraceFile([EVENT], [Buffer({0: _pages(0, 10)})], MACHINE, options=[(22, text)]).to_bytes()
    for raw in (old[: old.index(b"flyrecord\0")] + b"latency  \0# tracer: irqsoff", new):
        with pytest.raises(CaptureError, match="latency") as caught:
            TraceDat.open(_write(tmp_path, raw))
        assert caught.value.advice is not None


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG"),
        (b"hello\n", "no capture"),
        (b"\0" * 9000, "no capture"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, word: str) -> None:
    with pytest.raises(UnknownFormatError, match=word) as caught:
        open_capture(_write(tmp_path, content))
    assert caught.value.advice


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    secret = tmp_path / "secret"
    secret.touch(mode=0o000)
    expected = {
        tmp_path: "folder",
        Path("/dev/null"): "device",
        tmp_path / "empty": "empty",
        tmp_path / "none": "no such file",
    }
    if os.geteuid() != 0:
        expected[secret] = "permission"
    for path, word in expected.items():
        with pytest.raises(CaptureError, match=word) as caught:
            open_capture(path)
        assert caught.value.advice


@pytest.mark.parametrize("version", [b"5", b"8", b"7.1", b"x" * 200])
def test_other_versions_are_refused(tmp_path: Path, version: bytes) -> None:
    with pytest.raises(CaptureError, match="version"):
        open_capture(_write(tmp_path, b"\x17\x08\x44tracing" + version + b"\0" + bytes(100)))


def test_what_is_asked_for_wrongly(tmp_path: Path) -> None:
    path = _write(tmp_path, _file().to_bytes())
    with TraceDat.open(path) as capture:
        with pytest.raises(UsageError, match="no field 'colour'"):
            capture.blocks({"demo:mixed": ("colour",)})
        assert all(block == {} for block in capture.blocks({"demo:unknown": None}))
    with pytest.raises(UsageError, match="no buffer 'third'"):
        TraceDat.open(path, buffer="third")


def test_reading_may_be_repeated_and_left_early(tmp_path: Path) -> None:
    path = _write(tmp_path, _file(7, "zstd").to_bytes())
    with TraceDat.open(path) as capture:
        blocks: Iterator[Any] = capture.blocks({"demo:mixed": ()})
        next(blocks)
        del blocks
        counts = [capture.counts(), capture.counts()]
        for _ in capture.blocks({}):
            pass
        counts.append(capture.counts())

    assert counts[0].equals(counts[1])
    assert counts[0].equals(counts[2])
    assert isinstance(capture._file, mmap.mmap)
    assert capture._file.closed


def test_every_error_is_one_of_ours() -> None:
    assert issubclass(CaptureError, ItsTraceError)


@pytest.mark.parametrize("left_bytes", [600, 40_000, 900_000])
def test_a_file_of_version_7_that_is_cut_says_that_it_is(tmp_path: Path, left_bytes: int) -> None:
    """The table of its buffers stands behind everything else: nothing can be read, and why is said."""
    raw = (SAMPLES / "6.12-clean.dat").read_bytes()[:left_bytes]
    with pytest.raises(CaptureError, match=f"is cut short: it has {left_bytes:,} bytes") as caught:
        TraceDat.open(_write(tmp_path, raw))
    assert "--file-version 6" in str(caught.value.advice)
