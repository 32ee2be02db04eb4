"""What was recorded of each event, and how its samples are laid out.

Source: include/uapi/linux/perf_event.h:struct perf_event_attr, PERF_RECORD_SAMPLE (v6.12)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntFlag
from typing import Final

PERF_TYPE_SOFTWARE: Final = 1
PERF_TYPE_TRACEPOINT: Final = 2
PERF_COUNT_SW_DUMMY: Final = 9


class SampleType(IntFlag):
    """What a sample holds, as far as it stands before the raw data or says which event it is of."""

    IP = 1 << 0
    TID = 1 << 1
    TIME = 1 << 2
    ADDR = 1 << 3
    READ = 1 << 4
    CALLCHAIN = 1 << 5
    ID = 1 << 6
    CPU = 1 << 7
    PERIOD = 1 << 8
    STREAM_ID = 1 << 9
    RAW = 1 << 10
    IDENTIFIER = 1 << 16


class ReadFormat(IntFlag):
    """What PERF_SAMPLE_READ puts into a sample."""

    TOTAL_TIME_ENABLED = 1 << 0
    TOTAL_TIME_RUNNING = 1 << 1
    ID = 1 << 2
    GROUP = 1 << 3
    LOST = 1 << 4


#: The words of fixed size, in the order in which a sample has them behind its header of 8 bytes.
_ORDER = (
    SampleType.IDENTIFIER,
    SampleType.IP,
    SampleType.TID,
    SampleType.TIME,
    SampleType.ADDR,
    SampleType.ID,
    SampleType.STREAM_ID,
    SampleType.CPU,
    SampleType.PERIOD,
)
#: The words at the end of every other record, where `sample_id_all` is set.
_TRAILER = (
    SampleType.TID,
    SampleType.TIME,
    SampleType.ID,
    SampleType.STREAM_ID,
    SampleType.CPU,
    SampleType.IDENTIFIER,
)
HEADER_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a sample keeps its parts: offsets from the record's beginning, None where it has no such part."""

    id_at: int | None
    tid_at: int | None
    time_at: int | None
    cpu_at: int | None
    #: where the parts of varying size begin: read, callchain, raw
    fixed_end: int
    #: words of a read value: before the entries, and of each; the entries' number is the first word of a group
    read_head_words: int
    read_entry_words: int
    read_group: bool
    callchain: bool
    raw: bool


@dataclass(frozen=True, slots=True)
class Trailer:
    """Where a record that is no sample keeps whose it is: offsets from the record's end, None where it does not."""

    id_before_end: int | None
    time_before_end: int | None
    cpu_before_end: int | None
    size_bytes: int


@dataclass(slots=True)
class Attribute:
    """One recorded event: what it counts, and what its samples hold."""

    kind: int  # PERF_TYPE_*
    config: int  # of a tracepoint: its event id
    sample_type: SampleType
    read_format: ReadFormat
    period: int
    frequency: bool
    sample_id_all: bool
    clock_id: int | None
    ids: tuple[int, ...] = ()
    name: str | None = None
    layout: Layout = field(init=False)
    trailer: Trailer = field(init=False)

    def __post_init__(self) -> None:
        self.layout = _layout(self.sample_type, self.read_format)
        self.trailer = _trailer(self.sample_type if self.sample_id_all else SampleType(0))

    @property
    def is_tracepoint(self) -> bool:
        """Whether its samples' raw data is a trace record."""
        return self.kind == PERF_TYPE_TRACEPOINT

    @property
    def is_dummy(self) -> bool:
        """Whether it counts nothing and has no samples: perf adds one that the records of tasks and maps go with."""
        return self.kind == PERF_TYPE_SOFTWARE and self.config == PERF_COUNT_SW_DUMMY


def _layout(sample_type: SampleType, read_format: ReadFormat) -> Layout:
    places: dict[SampleType, int] = {}
    at = HEADER_BYTES
    for part in _ORDER:
        if part in sample_type:
            places[part] = at
            at += 8
    head, entry = 0, 0
    group = ReadFormat.GROUP in read_format
    if SampleType.READ in sample_type:
        # Source: perf_event.h:struct read_format: {value, times, id, lost}, or {nr, times, {value, id, lost}[nr]}
        head = sum(
            part in read_format for part in (ReadFormat.TOTAL_TIME_ENABLED, ReadFormat.TOTAL_TIME_RUNNING)
        )
        entry = 1 + sum(part in read_format for part in (ReadFormat.ID, ReadFormat.LOST))
        head += 1 if group else entry
    return Layout(
        id_at=places.get(SampleType.IDENTIFIER, places.get(SampleType.ID)),
        tid_at=places.get(SampleType.TID),
        time_at=places.get(SampleType.TIME),
        cpu_at=places.get(SampleType.CPU),
        fixed_end=at,
        read_head_words=head,
        read_entry_words=entry,
        read_group=group and SampleType.READ in sample_type,
        callchain=SampleType.CALLCHAIN in sample_type,
        raw=SampleType.RAW in sample_type,
    )


def _trailer(sample_type: SampleType) -> Trailer:
    present = [part for part in _TRAILER if part in sample_type]
    size = 8 * len(present)
    places = {part: size - 8 * i for i, part in enumerate(present)}
    return Trailer(
        places.get(SampleType.IDENTIFIER, places.get(SampleType.ID)),
        places.get(SampleType.TIME),
        places.get(SampleType.CPU),
        size,
    )


#: Bits of the flags behind `read_format`. Source: perf_event.h:struct perf_event_attr
_FREQ, _SAMPLE_ID_ALL, _USE_CLOCKID = 10, 18, 25
#: PERF_ATTR_SIZE_VER0: no kernel ever had a shorter one.
MIN_ATTRIBUTE_BYTES: Final = 64
_CLOCK_ID_AT: Final = 92


def parse_attribute(raw: bytes, *, big_endian: bool) -> Attribute:
    """Read a `perf_event_attr` of any size from 64 bytes on; what a newer kernel added at its end is passed over.

    Raises: ValueError where it is shorter.
    """
    if len(raw) < MIN_ATTRIBUTE_BYTES:
        raise ValueError(
            f"the description of an event has {len(raw)} bytes, it has at least {MIN_ATTRIBUTE_BYTES}"
        )
    order = "big" if big_endian else "little"

    def number(at: int, size_bytes: int) -> int:
        return int.from_bytes(raw[at : at + size_bytes], order)  # type: ignore[arg-type]

    flags = number(40, 8)

    def flag(bit: int) -> bool:
        # Source: tools/perf/util/session.c:swap_bitfield: a big-endian compiler fills bit fields from the top
        return bool(flags >> (63 - bit if big_endian else bit) & 1)

    clock_id = None
    if flag(_USE_CLOCKID) and len(raw) >= _CLOCK_ID_AT + 4:
        clock_id = int.from_bytes(raw[_CLOCK_ID_AT : _CLOCK_ID_AT + 4], order, signed=True)  # type: ignore[arg-type]
    return Attribute(
        kind=number(0, 4),
        config=number(8, 8),
        sample_type=SampleType(number(24, 8)),
        read_format=ReadFormat(number(32, 8)),
        period=number(16, 8),
        frequency=flag(_FREQ),
        sample_id_all=flag(_SAMPLE_ID_ALL),
        clock_id=clock_id,
    )
