"""The records of a real perf.data in every other form that perf writes: the same samples come out of each."""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING

import polars as pl
import pytest
from helpers import perfdata_writer as writer
from helpers.perf_script import all_samples

from itstrace.errors import CaptureError
from itstrace.readers import open_capture
from itstrace.readers.perfdata import PerfData

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.perfdata_writer import Recording

pytestmark = pytest.mark.corpus

TYPE = writer.REAL_SAMPLE_TYPE


@pytest.fixture
def real(corpus: Path) -> Recording:
    return _load(corpus / "forms-6.12" / "perf-mono.data")


@cache
def _load(path: Path) -> Recording:
    return writer.load(path.read_bytes())


@cache
def _expected(path: Path) -> pl.DataFrame:
    """Give what the real file holds: compared with perf script's text in test_perfdata_reference.py."""
    with PerfData.open(path) as capture:
        return all_samples(capture)


def _read(folder: Path, raw: bytes) -> tuple[PerfData, pl.DataFrame]:
    path = folder / "written.data"
    path.write_bytes(raw)
    capture = open_capture(path)
    assert isinstance(capture, PerfData)
    return capture, all_samples(capture)


def _auxtrace(recording: Recording) -> Recording:
    """Put AUX data between the records: it looks like records, and is none."""
    noise = writer.record(writer.SAMPLE, b"\1" * 248) * 4000
    aux = writer.record(writer.AUXTRACE, struct.pack("<QQQIIII", len(noise), 0, 0, 0, 0, 0, 0)) + noise
    records = list(recording.records)
    for i in range(len(records) - 1, 0, -1500):
        records.insert(i, aux)
    return writer.Recording(recording.events, records, recording.features)


def _unknown_records(recording: Recording) -> Recording:
    """Put records of a newer perf between the others."""
    records = [part for each in recording.records for part in (each, writer.record(99, b"\xff" * 40))]
    return writer.Recording(recording.events, records, recording.features)


def _larger_attributes(recording: Recording) -> Recording:
    """Describe events as a newer kernel does."""
    events = [writer.Event(event.attr + b"\xee" * 64, event.ids) for event in recording.events]
    for event in events:
        event.attr = event.attr[:4] + struct.pack("<I", len(event.attr)) + event.attr[8:]
    return writer.Recording(events, recording.records, recording.features)


def _without_ids(recording: Recording) -> Recording:
    """Leave out the ids: the trace records say themselves of which event they are."""
    return writer.Recording(
        [writer.Event(event.attr, ()) for event in recording.events], recording.records, recording.features
    )


def _without_rounds(recording: Recording) -> Recording:
    records = [each for each in recording.records if each[:4] != struct.pack("<I", writer.FINISHED_ROUND)]
    return writer.Recording(recording.events, records, recording.features)


FORMS: dict[str, Callable[[Recording], bytes]] = {
    "file": writer.write_file,
    "pipe": writer.write_pipe,
    "packed": lambda real: writer.write_file(writer.packed(real)),
    "packed, records cut": lambda real: writer.write_file(writer.packed(real, chunk_bytes=997)),
    "packed, padded": lambda real: writer.write_file(writer.packed(real, writer.COMPRESSED2)),
    "packed pipe": lambda real: writer.write_pipe(writer.packed(real, level=19, chunk_bytes=5000)),
    "AUX data": lambda real: writer.write_file(_auxtrace(real)),
    "AUX data in a pipe": lambda real: writer.write_pipe(_auxtrace(real)),
    "newer records": lambda real: writer.write_file(_unknown_records(real)),
    "newer attributes": lambda real: writer.write_file(_larger_attributes(real)),
    "newer attributes in a pipe": lambda real: writer.write_pipe(_larger_attributes(real)),
    "no ids": lambda real: writer.write_file(_without_ids(real)),
    "no rounds": lambda real: writer.write_file(_without_rounds(real)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_samples_come_out_of_every_form(
    corpus: Path, real: Recording, tmp_path: Path, form: str
) -> None:
    expected = _expected(corpus / "forms-6.12" / "perf-mono.data")
    capture, samples = _read(tmp_path, FORMS[form](real))

    assert samples.equals(expected)
    assert capture.damage() == []
    assert capture.disorder() == 0
    assert capture.info.clock == "mono"
    assert capture.info.kernel == "6.12.107+deb13-arm64"
    pipe, packed = " pipe" if "pipe" in form else "", " zstd" if "packed" in form else ""
    assert capture.info.format == f"perf.data{pipe}{packed}"
    assert capture.comms[1770] == "qemu-system-aar"


READS = {
    "read": 0,
    "read id": writer.FORMAT_ID,
    "read all": writer.FORMAT_ENABLED | writer.FORMAT_RUNNING | writer.FORMAT_ID | writer.FORMAT_LOST,
    "read group": writer.FORMAT_GROUP,
    "read group all": writer.FORMAT_GROUP | writer.FORMAT_ENABLED | writer.FORMAT_RUNNING | writer.FORMAT_ID | writer.FORMAT_LOST,
}  # fmt: skip


@pytest.mark.parametrize("read", [None, *READS])
@pytest.mark.parametrize(
    "parts",
    [0, writer.CALLCHAIN, writer.ADDR | writer.STREAM_ID | writer.ID, writer.ADDR | writer.CALLCHAIN],
    ids=["plain", "callchain", "address, ids", "address, callchain"],
)
def test_samples_hold_whatever_perf_can_put_before_the_trace_record(
    corpus: Path, real: Recording, tmp_path: Path, parts: int, read: str | None
) -> None:
    expected = _expected(corpus / "forms-6.12" / "perf-mono.data")
    sample_type = TYPE | parts | (0 if read is None else writer.READ)
    changed = real.with_samples(sample_type, READS[read] if read else 0, entries=3)
    capture, samples = _read(tmp_path, writer.write_file(changed))

    assert samples.equals(expected)
    assert capture.damage() == []


@pytest.mark.parametrize("kept", [writer.ID, 0], ids=["id", "no id"])
def test_samples_without_identifier(corpus: Path, real: Recording, tmp_path: Path, kept: int) -> None:
    expected = _expected(corpus / "forms-6.12" / "perf-mono.data")
    changed = real.with_samples(TYPE & ~writer.IDENTIFIER | kept)
    _, samples = _read(tmp_path, writer.write_file(changed))

    assert samples.equals(expected)


def test_events_of_several_layouts_are_told_apart_by_their_ids(
    corpus: Path, real: Recording, tmp_path: Path
) -> None:
    """Half of the events with a call chain, the other half without; one is no tracepoint at all."""
    expected = _expected(corpus / "forms-6.12" / "perf-mono.data")
    chained = real.with_samples(TYPE | writer.CALLCHAIN)
    odd = {id_ for i, event in enumerate(real.events) if i % 2 for id_ in event.ids}
    events = [(chained if i % 2 else real).events[i] for i in range(len(real.events))]
    records = [
        other if writer.is_sample(plain) and writer.sample_parts(plain)[writer.IDENTIFIER] in odd else plain
        for plain, other in zip(real.records, chained.records, strict=True)
    ]
    clock = writer.Event(struct.pack("<IIQ", 1, 136, 0) + real.events[0].attr[16:], (0xC10C,))
    raw_time = (
        struct.pack("<6QI", 0xC10C, 0, 7 << 32 | 7, int(expected["time_ns"][5]), 1, 1, 12) + b"\xff" * 12
    )
    tick = writer.record(writer.SAMPLE, raw_time)
    capture, samples = _read(
        tmp_path, writer.write_file(writer.Recording([*events, clock], [*records, tick], real.features))
    )

    assert samples.drop("seq").equals(expected.drop("seq"))
    counts = capture.counts()
    assert counts["records"].sum() == expected.height + 1
    assert counts.filter(pl.col("event") == "perf:1:0x0").rows() == [("perf:1:0x0", 1, 1)]


def test_no_time_is_an_error_with_advice(real: Recording, tmp_path: Path) -> None:
    path = tmp_path / "untimed.data"
    path.write_bytes(writer.write_file(real.with_samples(TYPE & ~writer.TIME)))

    with pytest.raises(CaptureError, match="no time") as raised:
        open_capture(path)
    assert raised.value.advice is not None
    assert "perf record -T" in raised.value.advice


def test_no_cpu_is_cpu_0_and_said(corpus: Path, real: Recording, tmp_path: Path) -> None:
    expected = _expected(corpus / "forms-6.12" / "perf-mono.data")
    capture, samples = _read(tmp_path, writer.write_file(real.with_samples(TYPE & ~writer.CPU)))

    assert set(samples["cpu"]) == {0}
    assert samples["time_ns"].equals(expected["time_ns"])
    assert "not recorded" in capture.info.options["CPU"]


def test_no_task_is_the_one_that_the_trace_record_names(real: Recording, tmp_path: Path) -> None:
    _, samples = _read(tmp_path, writer.write_file(real.with_samples(TYPE & ~writer.TID)))

    assert set(samples["pid"]) >= {1789, 1790}


def test_killed_perf_leaves_samples_and_no_descriptions(real: Recording, tmp_path: Path) -> None:
    """Without its end a file has no formats: the samples can be counted, and that is said."""
    capture, samples = _read(tmp_path, writer.write_file(real, size_known=False))

    assert samples.is_empty()
    assert capture.counts()["records"].sum() == sum(map(writer.is_sample, real.records))
    problems = " ".join(each.problem for each in capture.damage())
    assert "killed" in problems
    assert "descriptions of the events are missing" in problems


def test_a_pipe_cut_short_gives_what_is_there(corpus: Path, real: Recording, tmp_path: Path) -> None:
    expected = _expected(corpus / "forms-6.12" / "perf-mono.data")
    whole = writer.write_pipe(real)
    capture, samples = _read(tmp_path, whole[: len(whole) // 2 + 3])

    assert 0 < samples.height < expected.height
    assert set(samples.drop("seq").iter_rows()) <= set(expected.drop("seq").iter_rows())
    assert "the records end within one" in capture.damage()[-1].problem
    assert capture.gaps().filter(pl.col("lost").is_null()).height == 2


def test_reading_goes_on_behind_a_broken_record(corpus: Path, real: Recording, tmp_path: Path) -> None:
    expected = _expected(corpus / "forms-6.12" / "perf-mono.data")
    middle = len(real.records) // 2
    broken = [*real.records[:middle], b"\0" * 8, *real.records[middle:]]
    capture, samples = _read(
        tmp_path, writer.write_file(writer.Recording(real.events, broken, real.features))
    )

    assert expected.height - 200 < samples.height <= expected.height
    assert set(samples.drop("seq").iter_rows()) <= set(expected.drop("seq").iter_rows())
    assert "a record of 0 bytes is impossible" in capture.damage()[0].problem


def test_sampled_events_are_said_to_be_incomplete(real: Recording, tmp_path: Path) -> None:
    event = real.events[0]
    event = writer.Event(event.attr[:16] + struct.pack("<Q", 100) + event.attr[24:], event.ids)
    capture, _ = _read(
        tmp_path, writer.write_file(writer.Recording([event, *real.events[1:]], real.records, real.features))
    )

    assert "every 100th time only" in capture.damage()[0].problem
