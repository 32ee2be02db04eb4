"""Forms of the file that no capture at hand has: written here, read by trace-cmd, then by us."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from helpers.trace_cmd import differences, needs_trace_cmd, report
from helpers.tracedat_writer import Buffer, Event, Field, Machine, Page, TraceFile, pages

from itstrace.readers.tracedat import TraceDat

if TYPE_CHECKING:
    from pathlib import Path

NUMBERS = Event(
    300,
    "demo",
    "numbers",
    [
        Field("u8", "a", "B"), Field("s8", "b", "b"), Field("u16", "c", "H"), Field("s16", "d", "h"),
        Field("unsigned int", "e", "I"), Field("int", "f", "i"),
        Field("u64", "g", "Q"), Field("s64", "h", "q"),
        Field("unsigned long", "l", "L"), Field("void *", "p", "P"), Field("bool", "t", "B"),
        Field("pid_t", "pid", "i"),
    ],
)  # fmt: skip
TEXTS = Event(
    301,
    "demo",
    "texts",
    [
        Field("char[16]", "comm", "16s"), Field("__data_loc char[]", "s", "str"), Field("u8[6]", "mac", "6B"),
        Field("unsigned long[3]", "args", "3L"), Field("__rel_loc char[]", "r", "rel"),
        Field("__data_loc u32[]", "list", "I*"),
    ],
)  # fmt: skip
EMPTY = Event(302, "other", "empty", [])
EVENTS = [NUMBERS, TEXTS, EMPTY]

ALL_FORMS = [
    pytest.param(version, compression, big_endian, long_bytes, page_bytes, id=f"v{version}-{compression}-"
                 f"{'be' if big_endian else 'le'}{8 * long_bytes}-{page_bytes >> 10}K")
    for version, compression in ((6, "none"), (7, "none"), (7, "zlib"), (7, "zstd"))
    for big_endian in (False, True)
    for long_bytes in (4, 8)
    for page_bytes in (4096, 8192, 65536)
]  # fmt: skip


def _values(machine: Machine, chance: random.Random) -> tuple[Event, list[Any]]:
    word = 8 * machine.long_bytes
    match chance.randrange(8):
        case 0:
            return EMPTY, []
        case 1 | 2:
            text = "".join(
                chance.choice("abc _-:[]xyz") for _ in range(chance.choice((0, 1, 7, 40, 200)))
            ).strip()
            ints = [chance.getrandbits(32) for _ in range(chance.randrange(4))]
            # The reference stops to print a u8 array as text once it cannot, so this one never can be.
            mac = [200 + chance.randrange(50) for _ in range(6)]
            args = [chance.getrandbits(word) for _ in range(3)]
            return TEXTS, [
                "task" + "x" * chance.randrange(11),
                text,
                mac,
                args,
                "rel " + text[:30] + ".",
                ints,
            ]
        case _:
            bits = chance.getrandbits
            signed = [bits(n) - (1 << n - 1) for n in (8, 16, 32, 64)]
            return NUMBERS, [
                bits(8), signed[0], bits(16), signed[1], bits(32), signed[2], bits(64), signed[3],
                bits(word), bits(word), bits(1), chance.randrange(1 << 20),
            ]  # fmt: skip


def _records(machine: Machine, seed: int, count: int, start: int = 10**12) -> list[tuple[int, bytes]]:
    chance = random.Random(seed)  # noqa: S311
    time, made = start, []
    for _ in range(count):
        time += chance.choice((0, 1, 500, 100_000, (1 << 27) - 1, 1 << 27, 1 << 33))
        event, values = _values(machine, chance)
        made.append((time, event.payload(machine, chance.choice((0, 17, 4711)), values)))
    return made


def _check(path: Path, *, rows: int, reference: Path | None = None) -> TraceDat:
    """Read a file with both, and compare all that is comparable."""
    theirs = report(reference or path)
    assert len(theirs.records) == rows, theirs.stderr
    capture = TraceDat.open(path)
    parts: dict[str, list[pl.DataFrame]] = {}
    last_seq, last_ns = -1, -(1 << 63)
    for block in capture.blocks(dict.fromkeys(capture.formats)):
        everything = pl.concat([frame.select("seq", "time_ns") for frame in block.values()]).sort("seq")
        assert everything["time_ns"].is_sorted()
        if len(everything):
            assert everything["seq"][0] == last_seq + 1
            assert everything["time_ns"][0] >= last_ns
            last_seq, last_ns = everything["seq"][-1], everything["time_ns"][-1]
        for name, frame in block.items():
            assert frame["seq"].is_sorted()
            parts.setdefault(name, []).append(frame)
    assert capture.damage() == []
    seen = 0
    for name, frames in parts.items():
        ours = pl.concat(frames).sort("cpu", maintain_order=True)
        expected = theirs.records.filter(pl.col("event") == name.split(":")[1]).sort(
            "cpu", maintain_order=True
        )
        for column in ("time_ns", "cpu", "pid"):
            assert ours[column].to_list() == expected[column].to_list(), (name, column)
        found = differences(
            capture.formats[name],
            ours.drop("seq", "time_ns", "cpu", "pid"),
            expected["text"],
            {},
            big_endian=not capture.info.little_endian,
        )
        assert found == []
        seen += len(ours)
    assert seen == rows
    assert int(capture.counts()["records"].sum()) == rows
    assert (
        theirs.lost.sort("cpu", "lost").rows()
        == capture.gaps().select("cpu", "lost").sort("cpu", "lost").rows()
    )
    return capture


@needs_trace_cmd
@pytest.mark.parametrize(("version", "compression", "big_endian", "long_bytes", "page_bytes"), ALL_FORMS)
def test_every_form_of_the_file(  # noqa: PLR0917
    tmp_path: Path, version: Any, compression: Any, big_endian: bool, long_bytes: int, page_bytes: int
) -> None:
    """Version, compression, byte order, word size and page size, in every combination."""
    machine = Machine(big_endian, long_bytes)
    count = 300 if page_bytes < 65536 else 2500
    cpus = {cpu: pages(machine, page_bytes, _records(machine, cpu, count)) for cpu in (0, 1, 3)}
    file = TraceFile(
        EVENTS,
        [Buffer(cpus, page_bytes=page_bytes)],
        machine,
        version,
        compression,
        comms={17: "a b", 4711: "c"},
    )
    path = file.write(tmp_path / "x.dat")

    # trace-cmd 3.1.6 reads no zlib ("cannot uncompress"): it is given the same records in zstd.
    file.compression = "zstd" if compression == "zlib" else compression
    capture = _check(path, rows=3 * count, reference=file.write(tmp_path / "reference.dat"))

    info = capture.info
    assert (info.little_endian, info.long_size_bytes, info.page_size_bytes) == (
        not big_endian,
        long_bytes,
        page_bytes,
    )
    assert capture.comms == {17: "a b", 4711: "c"}
    assert (info.kernel, info.arch, info.clock, info.cpus) == ("6.12.0", "aarch64", "mono", 4)


@needs_trace_cmd
@pytest.mark.parametrize("long_bytes", [4, 8])
@pytest.mark.parametrize("big_endian", [False, True])
def test_stamps_of_every_kind(tmp_path: Path, big_endian: bool, long_bytes: int) -> None:
    """Time extends before records and before discarded ones, absolute stamps, and stamps with high bits."""
    machine = Machine(big_endian, long_bytes)
    payload = EMPTY.payload(machine, 17, [])
    long_payload = TEXTS.payload(machine, 17, ["c", "t" * 300, [255] * 6, [1, 2, 3], "r", [7]])
    page = Page(machine, 4096, (3 << 59) + 1000)
    assert page.record((3 << 59) + 1000, payload)
    assert page.record((3 << 59) + 2000, payload, discard=True)
    assert page.record((3 << 59) + 3000, long_payload)
    assert page.record((3 << 59) + (5 << 30), payload, discard=True)
    assert page.record((3 << 59) + (6 << 30), payload)
    assert page.absolute((3 << 59) + (7 << 30) + 5)
    assert page.record((3 << 59) + (7 << 30) + 6, payload)
    path = TraceFile(EVENTS, [Buffer({0: [page]})], machine).write(tmp_path / "x.dat")

    _check(path, rows=4)


@needs_trace_cmd
@pytest.mark.parametrize("long_bytes", [4, 8])
@pytest.mark.parametrize("big_endian", [False, True])
def test_lost_records(tmp_path: Path, big_endian: bool, long_bytes: int) -> None:
    """Pages that say that records are missing before them, with a count and without."""
    machine = Machine(big_endian, long_bytes)
    cpus = {}
    for cpu in (0, 1):
        cpus[cpu] = pages(machine, 4096, _records(machine, cpu, 400))
        for i, page in enumerate(cpus[cpu]):
            if i % 3 == 1 and page.room >= 8:
                page.lost = -1 if i % 2 else 1000 + i
    path = TraceFile(EVENTS, [Buffer(cpus)], machine).write(tmp_path / "x.dat")

    capture = _check(path, rows=800)

    gaps = capture.gaps()
    assert len(gaps)
    assert (gaps["from_ns"] <= gaps["to_ns"]).all()


@needs_trace_cmd
@pytest.mark.parametrize("version", [6, 7])
def test_instances_of_one_clock_are_merged(tmp_path: Path, version: Any) -> None:
    machine = Machine()
    top = Buffer({0: pages(machine, 4096, _records(machine, 1, 200))})
    other = Buffer(
        {
            0: pages(machine, 4096, _records(machine, 2, 300)),
            1: pages(machine, 4096, _records(machine, 3, 50)),
        }
    )
    other.name = "second"
    path = TraceFile(EVENTS, [top, other], machine, version).write(tmp_path / "x.dat")

    # Records of two buffers on one CPU are merged by time, which the reference does in the same way.
    capture = TraceDat.open(path)
    total = int(capture.counts()["records"].sum())

    assert total == len(report(path).records) == 550
    assert capture.info.buffers == ["", "second"]
    assert int(TraceDat.open(path, buffer="second").counts()["records"].sum()) == 350


def test_instances_of_other_clocks_are_told_and_read_alone(tmp_path: Path) -> None:
    machine = Machine()
    top = Buffer({0: pages(machine, 4096, _records(machine, 1, 200))})
    other = Buffer({0: pages(machine, 8192, _records(machine, 2, 300))}, "second", "counter", 8192)
    path = TraceFile(EVENTS, [top, other], machine).write(tmp_path / "x.dat")

    capture = TraceDat.open(path)
    alone = TraceDat.open(path, buffer="second")

    assert int(capture.counts()["records"].sum()) == 200
    assert "second" in capture.info.options["buffers left out"]
    assert int(alone.counts()["records"].sum()) == 300
    assert (alone.info.clock, alone.info.page_size_bytes) == ("counter", 8192)


# Multipliers here are below 2**31: the reference keeps them in a C int, and would extend the sign of a larger
# one.


def _time_shift(machine: Machine, flags: int, fractions: bool) -> bytes:
    samples = [(10**12, 5_000), (10**12 + 10**9, -7_000), (10**12 + 3 * 10**9, 123_456)]
    data = machine.pack("QII", 77, flags, 2)
    for count in (3, 1):
        data += machine.pack("I", count)
        data += machine.pack(f"{count}Q", *(time for time, _ in samples[:count]))
        data += machine.pack(f"{count}q", *(offset for _, offset in samples[:count]))
        data += machine.pack(f"{count}Q", *([3 if fractions else 1] * count))
    if fractions:
        data += machine.pack("4Q", 1, 1, 1, 0)
    return data


@needs_trace_cmd
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param(lambda _: [(7, b"1234567\0")], id="offset"),
        pytest.param(lambda _: [(7, b"-999999999\0"), (1, b"0x1f4\0")], id="offset-and-date"),
        pytest.param(lambda m: [(14, m.pack("IIQ", 0x70000001, 29, 0))], id="tsc"),
        pytest.param(lambda m: [(14, m.pack("IIQ", 2_000_000_000, 32, 12345))], id="tsc-32"),
        pytest.param(lambda m: [(12, _time_shift(m, 1, fractions=False))], id="time-shift"),
        pytest.param(lambda m: [(12, _time_shift(m, 1, fractions=True))], id="time-shift-fractions"),
        pytest.param(lambda m: [(12, _time_shift(m, 0, fractions=True))], id="time-shift-steps"),
        pytest.param(lambda m: [(12, _time_shift(m, 1, fractions=True)),
                                (14, m.pack("IIQ", 0x60000000, 31, 0)),
                                (7, b"17\0")], id="all"),
        pytest.param(lambda m: [(99, b"what is this"), (11, m.pack("Q", 0xABCDEF)),
                                (2, b"CPU: 0\noverrun: 3\n\0")],
                     id="unknown"),
    ],
)  # fmt: skip
def test_times_are_converted_as_the_reference_does(tmp_path: Path, options: Any, big_endian: bool) -> None:
    machine = Machine(big_endian)
    chance = random.Random(5)  # noqa: S311
    cpus = {}
    for cpu in (0, 1):
        time, records = 10**12 - 10**8, []
        for _ in range(400):
            time += chance.randrange(20_000_000)
            records.append((time, EMPTY.payload(machine, 17, [])))
        cpus[cpu] = pages(machine, 4096, records)
    path = TraceFile(EVENTS, [Buffer(cpus)], machine, options=options(machine)).write(tmp_path / "x.dat")

    capture = _check(path, rows=800)

    if any(option == 99 for option, _ in options(machine)):
        assert capture.info.options["option 99"] == "12 bytes"
        assert capture.info.trace_id == 0xABCDEF
        assert "overrun: 3" in capture.info.options["cpu stats 0"]


@pytest.mark.parametrize("version", [6, 7])
def test_spans_of_any_size_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: Any
) -> None:
    """However few pages fit into a batch, and however unlike CPUs are: every record once, and in order."""
    machine = Machine()
    busy = _records(machine, 1, 3000)
    rare = [(busy[i][0], EMPTY.payload(machine, 4711, [])) for i in (0, 1, 1500, 1500, 2999)]
    late = _records(machine, 2, 300, start=busy[2000][0])
    cpus = {0: pages(machine, 4096, rare), 1: pages(machine, 4096, busy), 5: pages(machine, 4096, late)}
    for page in cpus[1][1::7]:
        page.lost = -1
    path = TraceFile(EVENTS, [Buffer(cpus)], machine, version, chunk_pages=3).write(tmp_path / "x.dat")

    def read() -> tuple[int, dict[str, pl.DataFrame], pl.DataFrame]:
        with TraceDat.open(path) as capture:
            blocks = list(capture.blocks(dict.fromkeys(capture.formats)))
            whole = {name: pl.concat([block[name] for block in blocks]) for name in capture.formats}
            return len(blocks), whole, capture.gaps()

    one, expected, gaps = read()
    for batch_bytes, run_bytes in ((4096, 4096), (20_000, 8192), (100_000, 4096)):
        monkeypatch.setattr("itstrace.readers.tracedat.windows.BATCH_BYTES", batch_bytes)
        monkeypatch.setattr("itstrace.readers.tracedat.windows.BATCH_PAGES", 1)
        monkeypatch.setattr("itstrace.readers.tracedat.reader.RUN_BYTES", run_bytes)
        many, found, found_gaps = read()

        assert many > one
        assert all(found[name].equals(frame) for name, frame in expected.items())
        assert found_gaps.equals(gaps)
