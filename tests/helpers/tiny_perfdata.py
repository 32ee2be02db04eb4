"""A perf.data made from nothing, in either byte order: a few samples of two events, whose values are known."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

MAGIC = b"\x17\x08\x44tracing"
SAMPLE, LOST, COMM, FORK, LOST_SAMPLES, ROUND, ID_INDEX = 9, 2, 3, 7, 13, 68, 69
#: IDENTIFIER, IP, TID, TIME, CPU, RAW
SAMPLE_TYPE = 1 << 16 | 1 | 2 | 4 | 1 << 7 | 1 << 10
SAMPLE_ID_ALL = 18

_FORMAT = """name: {name}
ID: {number}
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

{fields}
print fmt: "value=%d", REC->value
"""
_FIELDS = {
    "wide": "\tfield:u64 value;\toffset:8;\tsize:8;\tsigned:0;\n",
    "text": "\tfield:__data_loc char[] text;\toffset:8;\tsize:4;\tsigned:0;\n"
    "\tfield:int value;\toffset:12;\tsize:4;\tsigned:1;\n",
}
EVENTS = {"wide": 300, "text": 301}


@dataclass
class Tiny:
    """Writes records one behind the other; `file` makes a file of them."""

    big_endian: bool = False
    records: list[bytes] = field(default_factory=list)

    def pack(self, codes: str, *values: object) -> bytes:
        """Pack numbers in the byte order of the file."""
        return struct.pack((">" if self.big_endian else "<") + codes, *values)

    def record(self, kind: int, body: bytes = b"", misc: int = 0) -> None:
        """Add one record."""
        self.records.append(self.pack("IHH", kind, misc, 8 + len(body)) + body)

    def round(self) -> None:
        """Add the end of a round."""
        self.record(ROUND)

    def sample(self, time_ns: int, cpu: int = 0, value: int = 0, event: str = "wide", tid: int = 7) -> None:
        """Add one sample."""
        raw = self.pack("HBBi", EVENTS[event], 0, 0, tid)
        if event == "wide":
            raw += self.pack("Q", value)
        else:
            text = f"n{value}".encode() + b"\0"
            raw += self.pack("Ii", len(text) << 16 | 16, value) + text
        raw += b"\0" * (-(len(raw) + 4) % 8)
        head = self.pack("QQIIQII", 50 + EVENTS[event] - 300, 0xFFFF, tid, tid, time_ns, cpu, 0)
        self.record(SAMPLE, head + self.pack("I", len(raw)) + raw)

    def trailer(self, time_ns: int = 0, cpu: int = 0, id_: int = 50, tid: int = 7) -> bytes:
        """Make what every other record ends with."""
        return self.pack("IIQIIQ", tid, tid, time_ns, cpu, 0, id_)

    def tracing_data(self) -> bytes:
        """Make the descriptions of the events. Source: tools/perf/util/trace-event-read.c:trace_report."""
        out = MAGIC + b"0.6\0" + self.pack("BBI", self.big_endian, 8, 4096)
        for part in (b"header_page\0", b"header_event\0"):
            out += part + self.pack("Q", 5) + b"text\n"
        out += self.pack("I", 0) + self.pack("I", 1) + b"tiny\0" + self.pack("I", len(EVENTS))
        for name, number in EVENTS.items():
            text = _FORMAT.format(name=name, number=number, fields=_FIELDS[name]).encode()
            out += self.pack("Q", len(text)) + text
        out += self.pack("II", 0, 0)  # no kallsyms, no printk
        cmdlines = b"7 seven\n"
        return out + self.pack("Q", len(cmdlines)) + cmdlines

    def attribute(self, number: int) -> bytes:
        """Make a perf_event_attr."""
        flags = 1 << (63 - SAMPLE_ID_ALL if self.big_endian else SAMPLE_ID_ALL)
        head = self.pack("IIQQQQQ", 2, 136, number, 1, SAMPLE_TYPE, 0, flags)
        return head + b"\0" * (136 - len(head))

    def file(self) -> bytes:
        """Make a file with these records."""
        ids = self.pack("QQ", 50, 51)
        table = b"".join(
            self.attribute(number) + self.pack("QQ", 104 + 8 * i, 8)
            for i, number in enumerate(EVENTS.values())
        )
        data = b"".join(self.records)
        data_at = 104 + len(ids) + len(table)
        tracing = self.tracing_data()
        head = (b"2ELIFREP" if self.big_endian else b"PERFILE2") + self.pack("QQ", 104, 136 + 16)
        head += self.pack("6Q", 104 + len(ids), len(table), data_at, len(data), 0, 0)
        head += self.pack("4Q", 1 << 1, 0, 0, 0)
        at = data_at + len(data) + 16
        return head + ids + table + data + self.pack("QQ", at, len(tracing)) + tracing


def tiny(samples: int = 120, *, big_endian: bool = False) -> Tiny:
    """Make samples of two CPUs in rounds, as perf does: all of one CPU, then all of the other."""
    out = Tiny(big_endian)
    out.record(COMM, out.pack("II", 8, 8) + b"eight\0\0\0" + out.trailer())
    out.record(FORK, out.pack("IIIIQ", 9, 8, 9, 8, 0) + out.trailer())
    for first in range(0, samples, 24):
        for cpu in (0, 1):
            for i in range(first + cpu, min(first + 24, samples), 2):
                out.sample(1000 + 10 * i, cpu, i, "text" if i % 3 == 0 else "wide", tid=7 + cpu)
        out.round()
    return out
