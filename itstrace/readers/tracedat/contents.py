"""What a trace.dat holds apart from its records: its options, texts, and where each CPU's pages lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

from itstrace.errors import Damage
from itstrace.readers.descriptions import Descriptions

if TYPE_CHECKING:
    import mmap
    from pathlib import Path

    from itstrace.readers.tracedat.clock import TimeShift, Tsc


class Option(IntEnum):
    """Option and section ids. Source: trace-cmd.dat.v7(5), OPTIONS SECTION."""

    DONE = 0
    DATE = 1
    CPUSTAT = 2
    BUFFER = 3
    TRACECLOCK = 4
    UNAME = 5
    HOOK = 6
    OFFSET = 7
    CPUCOUNT = 8
    VERSION = 9
    PROCMAPS = 10
    TRACEID = 11
    TIME_SHIFT = 12
    GUEST = 13
    TSC2NSEC = 14
    STRINGS = 15
    HEADER_INFO = 16
    FTRACE_EVENTS = 17
    EVENT_FORMATS = 18
    KALLSYMS = 19
    PRINTK = 20
    CMDLINES = 21
    BUFFER_TEXT = 22
    BTF_FILE = 23
    LAST_BOOT_INFO = 24
    MODULES_FILE = 25


@dataclass(frozen=True, slots=True)
class CpuData:
    """Where one CPU's pages lie in the file."""

    cpu: int
    offset_bytes: int
    size_bytes: int
    #: the CPU's own file, where there is not one for all
    file: mmap.mmap | None = None


@dataclass(slots=True)
class Buffer:
    """One ring buffer (the top one, or an instance): its pages per CPU, their size and clock."""

    name: str
    clock: str | None
    page_bytes: int
    cpus: list[CpuData]
    compressed: bool = False


@dataclass(slots=True, kw_only=True)
class Container(Descriptions):
    """All that a trace.dat says apart from its records. Texts are as the kernel printed them."""

    path: Path
    size_bytes: int
    version: int = 0  # 0: no trace.dat but pages as the kernel gives them, see raw.py
    big_endian: bool = False
    long_bytes: int = 8
    page_bytes: int = 4096
    compression: str = "none"
    clocks: str = ""
    uname: str | None = None
    trace_cmd: str | None = None
    trace_id: int | None = None
    cpu_count: int | None = None
    #: nanoseconds to add to every stamp: options DATE and OFFSET
    offset_ns: int = 0
    tsc: Tsc | None = None
    time_shift: TimeShift | None = None
    cpu_stats: list[str] = field(default_factory=list)
    guests: list[str] = field(default_factory=list)
    #: other options, by name, for `itstrace info`
    notes: dict[str, str] = field(default_factory=dict)
    buffers: list[Buffer] = field(default_factory=list)
    damage: list[Damage] = field(default_factory=list)

    @property
    def clock(self) -> str | None:
        """The clock in use: the one in brackets in the kernel's `trace_clock`."""
        for word in self.clocks.split():
            if word.startswith("["):
                return word.strip("[]")
        return None

    @property
    def format(self) -> str:
        """What kind of file it is."""
        if self.version == 0:
            return "trace_pipe_raw"
        return f"trace.dat v{self.version}" + ("" if self.version == 6 else f" {self.compression}")

    def note_damage(self, offset_bytes: int | None, problem: str) -> None:
        """Keep a place at which the container is damaged."""
        self.damage.append(Damage(offset_bytes, None, problem))
