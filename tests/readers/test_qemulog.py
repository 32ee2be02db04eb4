"""QEMU's log of its own ITS as a capture: every line as QEMU printed it, whatever stands around it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import polars as pl
import pytest
import zstandard
from helpers.qemu_log import EXCERPT, text_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itstrace.errors import ItsTraceError, UnknownFormatError
from itstrace.readers import open_capture
from itstrace.readers.print_fmt import render
from itstrace.readers.qemulog import FORMATS, lines

if TYPE_CHECKING:
    from pathlib import Path

    from itstrace.readers.base import Capture

SYNC = "gicv3_its_cmd_sync GICv3 ITS: command SYNC"
STAMPED = "22832@1795390538.650005:"


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "its.log"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def opened(tmp_path: Path, text: str | bytes) -> Capture:
    return open_capture(written(tmp_path, text))


def printed(capture: Capture) -> list[str]:
    """Every record as the log has it, in order, without its stamp."""
    formats = capture.formats
    rows: list[tuple[int, str]] = []
    for block in capture.blocks(lambda event: event.fields):
        for name, frame in block.items():
            event = formats[name]
            rows += [
                (row["seq"], f"{event.name} {render(event, row)}") for row in frame.iter_rows(named=True)
            ]
    return [text for _, text in sorted(rows)]


def assert_every_line_is_read(path: Path) -> None:
    said = text_of(path).splitlines()
    with open_capture(path) as capture:
        assert printed(capture) == [line.partition(":")[2] for line in said]
        assert capture.damage() == []
        assert int(capture.counts()["records"].sum()) == len(said)
        stamps = [line.partition("@")[2].partition(":")[0].replace(".", "") for line in said]
        assert capture.span() == (int(stamps[0]) * 1000, int(stamps[-1]) * 1000)


def test_excerpt_is_read_line_by_line() -> None:
    assert_every_line_is_read(EXCERPT)


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["qemu-linux", "qemu-torture"])
def test_whole_log_is_read_line_by_line(corpus: Path, name: str) -> None:
    assert_every_line_is_read(corpus / name / "its.log.zst")


def test_small_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_capture(EXCERPT) as capture:
        whole = printed(capture), capture.counts(), capture.span()
    monkeypatch.setattr(lines, "CHUNK_BYTES", 1000)
    with open_capture(EXCERPT) as capture:
        assert printed(capture) == whole[0]
        assert capture.counts().equals(whole[1])
        assert capture.span() == whole[2]


def test_every_event_can_be_read(tmp_path: Path) -> None:
    said = []
    for event, text in FORMATS.items():
        filled = re.sub(r"{\w+:d}", "17", re.sub(r"{\w+}", "0xfedcba9876543210", text))
        said.append(f"gicv3_its_{event} GICv3 ITS{filled}")
    capture = opened(tmp_path, "\n".join(said))

    assert printed(capture) == said


def test_stamp_of_old(tmp_path: Path) -> None:
    text = f"{STAMPED}gicv3_its_process_command GICv3 ITS: processing command at offset 0x2: 0x9\n"
    capture = opened(tmp_path, text)

    row = capture.read("gicv3_its_process_command").row(0, named=True)
    assert row == {
        "seq": 0,
        "time_ns": 1795390538650005000,
        "cpu": 0,
        "pid": 22832,
        "comm": None,
        "slot": 2,
        "opcode": 9,
    }
    assert capture.info.clock == "wall"


@pytest.mark.parametrize(
    ("stamp", "time_ns"),
    [
        ("2026-11-22T23:35:38.650005Z ", 1795390538650005000),
        ("2026-11-22T23:35:38Z ", 1795390538000000000),
    ],
)
def test_stamp_of_new(tmp_path: Path, stamp: str, time_ns: int) -> None:
    capture = opened(tmp_path, f"{stamp}{SYNC}\n{stamp}virtio_notify vdev 0x1 vq 0x2\n")

    assert capture.read("gicv3_its_cmd_sync")["time_ns"].to_list() == [time_ns]
    assert capture.read("qemu:virtio_notify").select("time_ns", "pid", "text").row(0) == (
        time_ns,
        None,
        "vdev 0x1 vq 0x2",
    )


def test_without_stamps_the_line_is_the_time(tmp_path: Path) -> None:
    capture = opened(tmp_path, f"QEMU 9.2 monitor - type 'help' for more information\n{SYNC}\n\n{SYNC}\n")

    frame = capture.read("gicv3_its_cmd_sync")
    assert frame["time_ns"].to_list() == [2000, 4000]
    assert frame["pid"].to_list() == [None, None]
    assert capture.info.clock == "none: a line counts as a microsecond"


def test_what_stands_around_is_passed_over(tmp_path: Path) -> None:
    said = text_of(EXCERPT).splitlines()
    noise = [
        "[    0.000000] Booting Linux",
        "READY snap 7",
        "",
        "\x1b[2J caf\u00e9",
        "12-34@x",
        "gicv3_its_ x",
    ]
    torn = [f"{noise[at % len(noise)]}\n{line}" for at, line in enumerate(said)]
    capture = opened(tmp_path, "\r\n".join(torn))

    assert printed(capture) == [line.partition(":")[2] for line in said]
    assert capture.damage() == []


def test_console_may_end_no_line_before_an_event(tmp_path: Path) -> None:
    capture = opened(tmp_path, f"{STAMPED}{SYNC}\nlogin: {STAMPED}{SYNC}\n")

    assert capture.read("gicv3_its_cmd_sync")["pid"].to_list() == [22832, 22832]


def test_torn_line_is_damage(tmp_path: Path) -> None:
    capture = opened(tmp_path, f"{SYNC}\ngicv3_its_cmd_inv GICv3 ITS: command INV Dev")

    assert capture.counts().rows() == [("qemu:gicv3_its_cmd_sync", 0, 1)]
    (damage,) = capture.damage()
    assert damage.offset_bytes == 43
    assert damage.problem.startswith("line 2: not the text of gicv3_its_cmd_inv")


def test_clock_that_is_set_back_is_damage(tmp_path: Path) -> None:
    times = ["100.000000", "99.900000", "50.000000", "100.000001"]
    capture = opened(tmp_path, "".join(f"1@{time}:{SYNC}\n" for time in times))

    stamps = capture.read("gicv3_its_cmd_sync")["time_ns"].to_list()
    assert stamps == [100_000_000_000] * 3 + [100_000_001_000]
    (damage,) = capture.damage()
    assert damage.problem.startswith("line 3: the clock runs back by 50.0 s")


def test_log_that_is_cut_short_in_its_packing(tmp_path: Path) -> None:
    path = tmp_path / "its.log.zst"
    path.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(f"{SYNC}\n".encode() * 9)[:-3])
    with open_capture(path) as capture:
        assert capture.read("gicv3_its_cmd_sync").height == 9
        assert [place.problem for place in capture.damage()] == ["the zstd file is cut short"]


@pytest.mark.parametrize(
    "text",
    [
        "nothing here\n",
        # QEMU's ftrace backend: that is ftrace's text, with a task and a CPU.
        f" qemu-system-aar-4711  [001] .....   12.345678: tracing_mark_write: {SYNC}\n",
        "          <idle>-0       [000] d..2.   573.870490: gicv3_its_write: offset=0x80\n",
        "2026-11-22T23:35:38.650005Z kernel panic\n",
    ],
)
def test_other_text_is_no_log_of_qemu(tmp_path: Path, text: str) -> None:
    assert lines.first_event(written(tmp_path, text).read_bytes()) is None


def test_other_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownFormatError):
        opened(tmp_path, "nothing here\n")


def test_first_event_may_stand_behind_a_long_console(tmp_path: Path) -> None:
    capture = opened(tmp_path, "boot message\n" * 100_000 + f"{STAMPED}{SYNC}\n")

    assert capture.read("gicv3_its_cmd_sync").height == 1


GOOD = text_of(EXCERPT).encode()[:20_000]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, len(GOOD) - 1), st.binary(max_size=12), st.integers(0, 40)), max_size=12
    )
)
def test_damaged_logs_give_records_or_say_why(tmp_path: Path, wounds: list[tuple[int, bytes, int]]) -> None:
    data = bytearray(GOOD)
    for at, put, taken in wounds:
        data[at : at + taken] = put
    try:
        capture = opened(tmp_path, bytes(data))
        frames = [frame for block in capture.blocks(lambda event: event.fields) for frame in block.values()]
    except ItsTraceError:
        return
    assert sum(frame.height for frame in frames) == int(capture.counts()["records"].sum())
    times = pl.concat([frame.select("seq", "time_ns") for frame in frames]).sort("seq")["time_ns"]
    assert times.is_sorted()
