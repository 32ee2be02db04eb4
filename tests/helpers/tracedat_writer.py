"""A small writer of trace.dat files, for forms of the file that no capture at hand has.

What it writes is read back by trace-cmd first (test_tracedat_written.py): only that makes it a witness.

Source: trace-cmd.dat.v6(5), trace-cmd.dat.v7(5); include/linux/ring_buffer.h:enum ring_buffer_type (v6.12)
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

MISSED_EVENTS, MISSED_STORED = 1 << 31, 1 << 30
CHUNK_PAGES = 10

_CODE_BYTES = {"b": 1, "B": 1, "h": 2, "H": 2, "i": 4, "I": 4, "q": 8, "Q": 8}


@dataclass(frozen=True, slots=True)
class Machine:
    """What decides how numbers are written."""

    big_endian: bool = False
    long_bytes: int = 8

    @property
    def order(self) -> str:
        """The byte order as `struct` writes it."""
        return ">" if self.big_endian else "<"

    def pack(self, codes: str, *values: int) -> bytes:
        """Pack numbers without padding; `L` is a kernel's unsigned long."""
        return struct.pack(self.order + codes.replace("L", "Q" if self.long_bytes == 8 else "I"), *values)


@dataclass(frozen=True, slots=True)
class Field:
    """One field: a number (`code` of struct, `L` for long, `P` for a pointer), or as named below.

    `code` may be `16s` (char[16]), `6B` or `3L` (arrays), `str`, `I*` (`__data_loc` string, ints) or `rel` (a
    `__rel_loc` string).
    """

    c_type: str
    name: str
    code: str


class Event:
    """An event type: writes its format text and its payloads."""

    def __init__(
        self, event_id: int, system: str, name: str, fields: Sequence[Field], print_fmt: str = ""
    ) -> None:
        self.event_id, self.system, self.name, self.fields = event_id, system, name, fields
        self.print_fmt = print_fmt or '"x"'

    def _layout(self, machine: Machine) -> tuple[list[tuple[Field, int, int]], int]:
        places, at = [], 8
        for each in self.fields:
            size, align = _size(each.code, machine)
            at = -(-at // align) * align
            places.append((each, at, size))
            at += size
        return places, at

    def format_text(self, machine: Machine) -> str:
        """Write the event's `format` file."""
        lines = [
            f"name: {self.name}",
            f"ID: {self.event_id}",
            "format:",
            "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;",
            "\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;",
            "\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;",
            "\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;",
            "",
        ]
        for each, offset, size in self._layout(machine)[0]:
            c_type, _, brackets = each.c_type.partition("[")
            if each.c_type.startswith("__"):
                declaration = f"{each.c_type} {each.name}"
            else:
                declaration = f"{c_type} {each.name}" + (f"[{brackets}" if brackets else "")
            signed = int(each.code in ("b", "h", "i", "q"))
            lines.append(f"\tfield:{declaration};\toffset:{offset};\tsize:{size};\tsigned:{signed};")
        return "\n".join([*lines, "", f"print fmt: {self.print_fmt}", ""])

    def payload(self, machine: Machine, pid: int, values: Sequence[object]) -> bytes:
        """Write one record's payload."""
        places, end = self._layout(machine)
        body = bytearray(machine.pack("HBBi", self.event_id, 0, 0, pid).ljust(end, b"\0"))
        for (each, offset, size), value in zip(places, values, strict=True):
            if each.code in ("str", "rel", "I*"):
                if isinstance(value, str):
                    raw = value.encode() + b"\0"
                else:
                    assert isinstance(value, (list, tuple))
                    raw = machine.pack(f"{len(value)}I", *value)
                start = len(body) - (offset + size if each.code == "rel" else 0)
                body[offset : offset + size] = machine.pack("I", len(raw) << 16 | start)
                body += raw
            elif isinstance(value, str):
                body[offset : offset + size] = value.encode().ljust(size, b"\0")
            elif isinstance(value, (list, tuple)):
                codes = f"{len(value)}{each.code.lstrip('0123456789')}"
                body[offset : offset + size] = machine.pack(codes, *value)
            else:
                assert isinstance(value, int)
                code = "L" if each.code == "P" else each.code
                body[offset : offset + size] = machine.pack(code, value)
        return bytes(body)


def _size(code: str, machine: Machine) -> tuple[int, int]:
    if code in ("str", "rel", "I*"):
        return 4, 4
    count, kind = int(code.rstrip("sBHIQLP") or "1") if code[0].isdigit() else 1, code[-1]
    if kind == "s":
        return count, 1
    each = machine.long_bytes if kind in ("L", "P") else _CODE_BYTES[kind]
    return count * each, each


@dataclass(slots=True)
class Page:
    """One sub-buffer page under construction."""

    machine: Machine
    page_bytes: int
    stamp: int
    lost: int | None = None  # -1: without a count
    clock: int = 0
    data: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.clock = self.stamp

    @property
    def room(self) -> int:
        """How many bytes of records still fit."""
        stored = self.machine.long_bytes if self.lost is not None and self.lost > 0 else 0
        return self.page_bytes - 8 - self.machine.long_bytes - len(self.data) - stored

    def head(self, type_len: int, delta: int) -> bytes:
        """Write a record header."""
        assert 0 <= delta < 1 << 27
        word = type_len << 27 | delta if self.machine.big_endian else delta << 5 | type_len
        return self.machine.pack("I", word)

    def record(self, time: int, payload: bytes, *, discard: bool = False) -> bool:
        """Add a record, with a time extend before it where it needs one; False where the page is full."""
        delta = time - self.clock
        extend = b""
        if delta >= 1 << 27:
            extend = self.head(30, delta & (1 << 27) - 1) + self.machine.pack("I", delta >> 27)
            delta = 0
        words = -(-len(payload) // 4)
        body = payload.ljust(4 * words, b"\0")
        if discard:
            delta = max(delta, 1)
            raw = self.head(29, delta) + self.machine.pack("I", 4 * words)[:4] + body[4:]
        elif words <= 28:
            raw = self.head(words, delta) + body
        else:
            raw = self.head(0, delta) + self.machine.pack("I", 4 * words + 4) + body
        if len(extend) + len(raw) > self.room:
            return False
        self.data += extend + raw
        self.clock = (
            time if not discard else self.clock + (time - self.clock if extend else delta) + bool(extend)
        )
        return True

    def absolute(self, time: int) -> bool:
        """Add an absolute stamp."""
        if self.room < 8:
            return False
        low = time & (1 << 59) - 1
        self.data += self.head(31, low & (1 << 27) - 1) + self.machine.pack("I", low >> 27)
        self.clock = time
        return True

    def finish(self) -> bytes:
        """Give the page's bytes."""
        commit, tail = len(self.data), b""
        if self.lost is not None:
            commit |= MISSED_EVENTS
            if self.lost > 0:
                commit |= MISSED_STORED
                tail = self.machine.pack("L", self.lost)
        head = self.machine.pack("QL", self.stamp, commit)
        return (head + bytes(self.data) + tail).ljust(self.page_bytes, b"\xaa")


def pages(machine: Machine, page_bytes: int, records: Iterable[tuple[int, bytes]]) -> list[Page]:
    """Fill pages with records."""
    made: list[Page] = []
    for time, payload in records:
        if not made or not made[-1].record(time, payload):
            made.append(Page(machine, page_bytes, time))
            assert made[-1].record(time, payload), "a record is larger than a page"
    return made


@dataclass(slots=True)
class Buffer:
    """One ring buffer: its pages per CPU."""

    cpus: dict[int, list[Page]]
    name: str = ""
    clock: str = "mono"
    page_bytes: int = 4096


@dataclass(slots=True)
class TraceFile:
    """A whole file; the first buffer is the top one."""

    events: list[Event]
    buffers: list[Buffer]
    machine: Machine = field(default_factory=Machine)
    version: Literal[6, 7] = 7
    compression: Literal["none", "zlib", "zstd"] = "none"
    options: list[tuple[int, bytes]] = field(default_factory=list)
    comms: dict[int, str] = field(default_factory=dict)
    trace_clock: str = "local global [mono]"
    chunk_pages: int = CHUNK_PAGES

    def write(self, path: Path) -> Path:
        """Write the file."""
        path.write_bytes(self.to_bytes())
        return path

    def to_bytes(self) -> bytes:
        """Give the file's bytes."""
        return self._version_6() if self.version == 6 else self._version_7()

    # -- parts that both versions have -----------------------------------------------------------------------

    def _start(self) -> bytes:
        machine = self.machine
        head = b"\x17\x08\x44tracing" + f"{self.version}\0".encode()
        return (
            head
            + bytes([machine.big_endian, machine.long_bytes])
            + machine.pack("I", self.buffers[0].page_bytes)
        )

    def _header_info(self) -> bytes:
        long, page = self.machine.long_bytes, self.buffers[0].page_bytes
        text = (
            "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
            f"\tfield: local_t commit;\toffset:8;\tsize:{long};\tsigned:1;\n"
            "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
            f"\tfield: char data;\toffset:{8 + long};\tsize:{page - 8 - long};\tsigned:0;\n"
        )
        event = (
            "# compressed entry header\n\ttype_len    :    5 bits\n\ttime_delta  :   27 bits\n"
            "\tarray       :   32 bits\n\n\tpadding     : type == 29\n\ttime_extend : type == 30\n"
            "\ttime_stamp : type == 31\n\tdata max type_len  == 28\n"
        )
        return b"header_page\0" + self._sized(text, "Q") + b"header_event\0" + self._sized(event, "Q")

    def _sized(self, text: str, code: str) -> bytes:
        return self.machine.pack(code, len(text.encode())) + text.encode()

    def _formats(self) -> bytes:
        systems = sorted({event.system for event in self.events})
        out = self.machine.pack("I", len(systems))
        for system in systems:
            own = [event for event in self.events if event.system == system]
            out += system.encode() + b"\0" + self.machine.pack("I", len(own))
            out += b"".join(self._sized(event.format_text(self.machine), "Q") for event in own)
        return out

    def _cmdlines(self) -> bytes:
        return self._sized("".join(f"{pid} {comm}\n" for pid, comm in self.comms.items()), "Q")

    def _option(self, option: int, data: bytes) -> bytes:
        return self.machine.pack("HI", option, len(data)) + data

    def _all_options(self) -> list[tuple[int, bytes]]:
        cpus = 1 + max(cpu for buffer in self.buffers for cpu in buffer.cpus)
        clock = self.trace_clock.encode() + b"\0"
        return [
            (4, clock),
            (5, b"Linux host 6.12.0 aarch64\0"),
            (8, self.machine.pack("I", cpus)),
            *self.options,
        ]

    # -- version 6 -------------------------------------------------------------------------------------------

    def _version_6(self) -> bytes:
        machine = self.machine
        cpus = 1 + max(cpu for buffer in self.buffers for cpu in buffer.cpus)
        head = self._start() + self._header_info() + machine.pack("I", 0) + self._formats()
        head += self._sized("", "I") + self._sized("", "I") + self._cmdlines() + machine.pack("I", cpus)
        head += b"options  \0"
        for option, data in self._all_options():
            head += self._option(option, data)
        instances = self.buffers[1:]
        names = [buffer.name.encode() + b"\0" for buffer in instances]
        table_bytes = 10 + 16 * cpus
        clock = self._sized(self.trace_clock, "Q")
        after = len(head) + sum(14 + len(name) for name in names) + 2 + table_bytes + len(clock)
        page = self.buffers[0].page_bytes
        at = -(-(after + table_bytes * len(instances)) // page) * page
        tables, data = [], b""
        base = at
        for buffer in self.buffers:
            table = b"flyrecord\0"
            for cpu in range(cpus):
                raw = b"".join(each.finish() for each in buffer.cpus.get(cpu, []))
                table += machine.pack("QQ", at, len(raw))
                at += len(raw)
                data += raw
            tables.append(table)
        for i, name in enumerate(names):
            head += self._option(3, machine.pack("Q", after + i * table_bytes) + name)
        head += machine.pack("H", 0) + tables[0] + clock
        assert len(head) == after
        return (head + b"".join(tables[1:])).ljust(base, b"\0") + data

    # -- version 7 -------------------------------------------------------------------------------------------

    def _version_7(self) -> bytes:
        machine, packed = self.machine, self.compression != "none"
        out = bytearray(self._start() + self.compression.encode() + b"\0" + (b"1\0" if packed else b"\0"))
        pointer = len(out)
        out += machine.pack("Q", 0)
        options = self._all_options()
        for section, body in (
            (16, self._header_info()),
            (17, machine.pack("I", 0)),
            (18, self._formats()),
            (21, self._cmdlines()),
        ):
            options.append((section, machine.pack("Q", len(out))))
            out += self._section(section, body)
        first = len(out)
        out[pointer : pointer + 8] = machine.pack("Q", first)
        body = b"".join(self._option(*option) for option in options)
        # The pointer to the next options is written last; sections of options are not compressed here.
        next_at = first + 16 + len(body) + 6
        out += machine.pack("HHIQ", 0, 0, 0, len(body) + 14) + body + self._option(0, machine.pack("Q", 0))
        later = b""
        for buffer in self.buffers:
            later += self._option(3, self._buffer(out, buffer))
        out[next_at : next_at + 8] = machine.pack("Q", len(out))
        later += self._option(0, machine.pack("Q", 0))
        out += machine.pack("HHIQ", 0, 0, 0, len(later)) + later
        return bytes(out)

    def _section(self, section: int, body: bytes) -> bytes:
        if self.compression == "none":
            return self.machine.pack("HHIQ", section, 0, 0, len(body)) + body
        packed = self.pack(body)
        sizes = self.machine.pack("II", len(packed), len(body))
        return self.machine.pack("HHIQ", section, 1, 0, len(packed) + 8) + sizes + packed

    def pack(self, body: bytes) -> bytes:
        """Compress a block as the file does."""
        return zstandard.compress(body) if self.compression == "zstd" else zlib.compress(body)

    def _buffer(self, out: bytearray, buffer: Buffer) -> bytes:
        """Write a buffer's section behind the rest; give the option that describes it."""
        machine, packed = self.machine, self.compression != "none"
        start = len(out)
        out += machine.pack("HHIQ", 3, packed, 0, 0)
        table = b""
        for cpu, made in sorted(buffer.cpus.items()):
            if not packed:
                out += bytes(-len(out) % buffer.page_bytes)
            offset = len(out)
            raw = [page.finish() for page in made]
            if packed:
                chunks = [
                    b"".join(raw[i : i + self.chunk_pages]) for i in range(0, len(raw), self.chunk_pages)
                ]
                out += machine.pack("I", len(chunks))
                for chunk in chunks:
                    small = self.pack(chunk)
                    out += machine.pack("II", len(small), len(chunk)) + small
            else:
                out += b"".join(raw)
            table += machine.pack("IQQ", cpu, offset, len(out) - offset)
        out[start + 8 : start + 16] = machine.pack("Q", len(out) - start - 16)
        names = buffer.name.encode() + b"\0" + buffer.clock.encode() + b"\0"
        return (
            machine.pack("Q", start) + names + machine.pack("II", buffer.page_bytes, len(buffer.cpus)) + table
        )
