"""Writes perf.data files out of the records of real ones: through a pipe, packed, with other parts in the samples.

Source: tools/perf/Documentation/perf.data-file-format.txt, include/uapi/linux/perf_event.h (v6.12). Nothing here is
shared with the reader.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator

IP, TID, TIME, ADDR, READ, CALLCHAIN, ID, CPU, PERIOD, STREAM_ID, RAW = (1 << bit for bit in range(11))
IDENTIFIER = 1 << 16
REAL_SAMPLE_TYPE = IDENTIFIER | IP | TID | TIME | CPU | PERIOD | RAW
FORMAT_ENABLED, FORMAT_RUNNING, FORMAT_ID, FORMAT_GROUP, FORMAT_LOST = (1 << bit for bit in range(5))

LOST, COMM, SAMPLE = 2, 3, 9
HEADER_ATTR, HEADER_TRACING_DATA, FINISHED_ROUND, AUXTRACE, HEADER_FEATURE = 64, 66, 68, 71, 80
COMPRESSED, COMPRESSED2 = 81, 83
TRACING_DATA, COMPRESSED_FEATURE = 1, 27


def record(kind: int, body: bytes = b"", misc: int = 0) -> bytes:
    """Make one record."""
    return struct.pack("<IHH", kind, misc, 8 + len(body)) + body


def padded(body: bytes) -> bytes:
    """Fill up with zeroes to whole words."""
    return body + b"\0" * (-len(body) % 8)


@dataclass
class Event:
    """One recorded event: its perf_event_attr, and the ids that its samples bear."""

    attr: bytes
    ids: tuple[int, ...]

    def changed(self, sample_type: int | None = None, read_format: int | None = None) -> Event:
        """Give one whose samples hold other parts."""
        attr = bytearray(self.attr)
        if sample_type is not None:
            struct.pack_into("<Q", attr, 24, sample_type)
        if read_format is not None:
            struct.pack_into("<Q", attr, 32, read_format)
        return replace(self, attr=bytes(attr))


@dataclass
class Recording:
    """A perf.data taken apart."""

    events: list[Event]
    records: list[bytes]
    features: dict[int, bytes] = field(default_factory=dict)

    def with_samples(self, sample_type: int, read_format: int = 0, entries: int = 2) -> Recording:
        """Give one whose samples hold other parts; group reads and call chains have so many entries."""
        events = [event.changed(sample_type, read_format) for event in self.events]
        records = [
            _relaid(each, sample_type, read_format, entries) if _kind(each) == SAMPLE else each
            for each in self.records
        ]
        return Recording(events, records, self.features)


def load(raw: bytes) -> Recording:
    """Take a little-endian file apart."""
    magic, _size, attr_bytes, *places = struct.unpack_from("<8sQQ6Q", raw)
    assert magic == b"PERFILE2"
    attrs_at, attrs_size, data_at, data_size, _, _ = places
    events = []
    for at in range(attrs_at, attrs_at + attrs_size, attr_bytes):
        ids_at, ids_size = struct.unpack_from("<QQ", raw, at + attr_bytes - 16)
        ids = struct.unpack_from(f"<{ids_size // 8}Q", raw, ids_at)
        events.append(Event(raw[at : at + attr_bytes - 16], ids))
    bits = int.from_bytes(raw[72:104], "little")
    features = {}
    at = data_at + data_size
    for number in range(256):
        if bits >> number & 1:
            start, size = struct.unpack_from("<QQ", raw, at)
            features[number] = raw[start : start + size]
            at += 16
    return Recording(events, list(_records(raw[data_at : data_at + data_size])), features)


def write_file(recording: Recording, *, size_known: bool = True) -> bytes:
    """Write the form that `perf record -o FILE` writes; without its sizes as perf leaves it when it is killed."""
    ids = b"".join(struct.pack(f"<{len(event.ids)}Q", *event.ids) for event in recording.events)
    attr_bytes = len(recording.events[0].attr) + 16
    table, at = b"", 104
    for event in recording.events:
        table += event.attr + struct.pack("<QQ", at, 8 * len(event.ids))
        at += 8 * len(event.ids)
    data_at = 104 + len(ids) + len(table)
    data = b"".join(recording.records)
    bits = sum(1 << number for number in recording.features) if size_known else 0
    head = struct.pack("<8sQQ", b"PERFILE2", 104, attr_bytes)
    head += struct.pack("<6Q", 104 + len(ids), len(table), data_at, len(data) if size_known else 0, 0, 0)
    out = head + bits.to_bytes(32, "little") + ids + table + data
    if not size_known:
        return out
    place = len(out) + 16 * len(recording.features)
    index, bodies = b"", b""
    for body in (recording.features[number] for number in sorted(recording.features)):
        index += struct.pack("<QQ", place + len(bodies), len(body))
        bodies += body
    return out + index + bodies


def write_pipe(recording: Recording) -> bytes:
    """Write the form that `perf record -o -` writes."""
    out = struct.pack("<8sQ", b"PERFILE2", 16)
    for event in recording.events:
        out += record(HEADER_ATTR, event.attr + struct.pack(f"<{len(event.ids)}Q", *event.ids))
    for number, body in recording.features.items():
        if number != TRACING_DATA:
            if len(body) < 1 << 15:
                out += record(HEADER_FEATURE, struct.pack("<Q", number) + padded(body))
            continue
        whole = padded(body)
        out += record(HEADER_TRACING_DATA, struct.pack("<II", len(whole), 0)) + whole
    return out + b"".join(recording.records)


def packed(
    recording: Recording, kind: int = COMPRESSED, level: int = 1, chunk_bytes: int = 30_000
) -> Recording:
    """Pack what came out of the CPUs' buffers with zstd, one stream through all records; a record may be cut anywhere."""
    out: list[bytes] = []
    stream = zstandard.ZstdCompressor(level=level).compressobj()
    plain = b""

    def flush(*, all_of_it: bool) -> None:
        nonlocal plain
        while len(plain) >= chunk_bytes or (all_of_it and plain):
            chunk, plain = plain[:chunk_bytes], plain[chunk_bytes:]
            body = stream.compress(chunk) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
            if kind == COMPRESSED2:
                body = struct.pack("<Q", len(body)) + padded(body)
            out.append(record(kind, body))

    for each in recording.records:
        if _kind(each) < HEADER_ATTR:
            plain += each
            flush(all_of_it=False)
        else:
            flush(all_of_it=_kind(each) == FINISHED_ROUND)
            out.append(each)
    flush(all_of_it=True)
    features = {**recording.features, COMPRESSED_FEATURE: struct.pack("<5I", 1, 1, level, 3, 1 << 20)}
    return Recording(recording.events, out, features)


def sample_parts(body: bytes) -> dict[int, int | bytes]:
    """Take apart a sample's record of REAL_SAMPLE_TYPE."""
    identifier, ip, tid, time, cpu, period, size = struct.unpack_from("<6QI", body, 8)
    return {IDENTIFIER: identifier, ID: identifier, IP: ip, TID: tid, TIME: time, CPU: cpu, PERIOD: period,
            ADDR: 0xADD, STREAM_ID: 0x57, RAW: body[60 : 60 + size]}  # fmt: skip


def _relaid(body: bytes, sample_type: int, read_format: int, entries: int) -> bytes:
    parts = sample_parts(body)
    words = [
        parts[part]
        for part in (IDENTIFIER, IP, TID, TIME, ADDR, ID, STREAM_ID, CPU, PERIOD)
        if sample_type & part
    ]
    if sample_type & READ:
        # A counter's value looks like the size of raw data would, so that a wrong offset is noticed.
        times = [0x1111] * (bool(read_format & FORMAT_ENABLED) + bool(read_format & FORMAT_RUNNING))
        each = [40] + [0x2222] * (bool(read_format & FORMAT_ID) + bool(read_format & FORMAT_LOST))
        words += (
            [entries, *times, *each * entries] if read_format & FORMAT_GROUP else [each[0], *times, *each[1:]]
        )
    if sample_type & CALLCHAIN:
        words += [entries, *[0xFFFF800000000000] * entries]
    out = struct.pack(f"<{len(words)}Q", *words)
    if sample_type & RAW:
        raw = parts[RAW]
        assert isinstance(raw, bytes)
        out += struct.pack("<I", len(raw)) + raw
    return record(SAMPLE, padded(out), struct.unpack_from("<H", body, 4)[0])


def _records(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = struct.unpack_from("<H", data, at + 6)[0]
        yield data[at : at + size]
        at += size


def is_sample(each: bytes) -> bool:
    """Say whether a record is a sample."""
    return _kind(each) == SAMPLE


def _kind(each: bytes) -> int:
    return int(struct.unpack_from("<I", each)[0])
