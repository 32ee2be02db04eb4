"""What a perf.data holds apart from its records."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from itstrace.readers.descriptions import Descriptions

if TYPE_CHECKING:
    from itstrace.errors import Damage
    from itstrace.readers.perfdata.attributes import Attribute


class Feature(IntEnum):
    """The parts of the header that we read. Source: tools/perf/util/header.h (v6.12)."""

    TRACING_DATA = 1
    OSRELEASE = 4
    VERSION = 5
    ARCH = 6
    NRCPUS = 7
    CMDLINE = 11
    EVENT_DESC = 12
    CLOCKID = 23
    COMPRESSED = 27
    CLOCK_DATA = 29


class Record(IntEnum):
    """The records that mean something to us.

    Source: include/uapi/linux/perf_event.h:enum perf_event_type, tools/lib/perf/include/perf/event.h (v6.12)
    """

    LOST = 2
    COMM = 3
    FORK = 7
    SAMPLE = 9
    LOST_SAMPLES = 13
    HEADER_ATTR = 64
    HEADER_TRACING_DATA = 66
    FINISHED_ROUND = 68
    ID_INDEX = 69
    AUXTRACE = 71
    HEADER_FEATURE = 80
    COMPRESSED = 81
    COMPRESSED2 = 83


@dataclass(slots=True)
class Contents:
    """All that the header says, or the first records where the file came out of a pipe."""

    pipe: bool
    big_endian: bool
    data_start: int
    data_end: int
    attributes: list[Attribute] = field(default_factory=list)
    descriptions: Descriptions = field(default_factory=Descriptions)
    long_bytes: int = 8
    page_bytes: int = 4096
    kernel: str | None = None
    arch: str | None = None
    cpus: int = 0
    compressed: bool = False
    #: other things, by name, for `itstrace info`
    notes: dict[str, str] = field(default_factory=dict)
    damage: list[Damage] = field(default_factory=list)
